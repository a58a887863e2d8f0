"""What every stage knows: the run, the recipe, the machine, and the time that is left."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch

from athanor.base.files import fingerprint, write_json
from athanor.base.machine import Machine, Rates, exactness_key, peak_memory, return_memory, source_fingerprint
from athanor.base.progress import duration, say
from athanor.base.run import Run, Stage
from athanor.pipeline.plans import PLAN_SCHEMA_VERSION, Plan, RunPlan
from athanor.pipeline.recipe import Recipe
from athanor.science.planner import Speed
from athanor.training.kernels import training_kernels
from athanor.training.parallel import ALONE, Group

P = TypeVar("P", bound=Plan)
Work = tuple[Mapping[str, Any], list[str], Mapping[str, Any]]
"""What a stage's work returns: metrics, outputs, timing."""

_EVALUATION_SECONDS, _REFERENCE_RATE = 15.0, 2e11  # what evaluation takes at least on a machine of so many FLOP/s
_SCORING_SHARE = 0.05  # of the budget, where only what was pre-trained is measured
_MOST_EVALUATION = 0.25  # of the budget, whatever evaluation would take
_REPORT_SECONDS = 5.0  # for drawing the report card, after everything is measured
CORPUS_SHARE = 0.08  # of the budget, at most, for reading text
PRETRAIN_LENGTH = 256  # places of a row: most documents are shorter, and attention stays a small part


@dataclass
class Life:
    """What every stage knows. measuring_seconds: what measuring the machine took. repeated: the plans of another run,
    to be followed to the letter. group: the processes that train together; this is the first of them.
    """

    run: Run
    recipe: Recipe
    machine: Machine
    rates: Rates
    speed: Speed | None
    measuring_seconds: float
    repeated: RunPlan | None = None
    group: Group = ALONE

    @property
    def seed(self) -> int:
        return self.recipe.seed

    @cached_property
    def precision(self) -> str:
        return self.rates.precision if self.recipe.precision == "auto" else self.recipe.precision

    @property
    def device(self) -> torch.device:
        """Where models are trained and measured."""
        return self.group.device

    @property
    def alone(self) -> Group:
        """The first process, for what it does without the others."""
        return replace(ALONE, device=self.device)

    @property
    def precision_alone(self) -> str:
        """Of what is not trained: fp16 is for GPUs."""
        return "fp32" if self.precision == "fp16" and self.device.type == "cpu" else self.precision

    @property
    def peak_rate(self) -> float:
        """FLOP/s: the machine's best measured matrix rate, whichever type it is reached in."""
        return self.rates.best

    @property
    def memory(self) -> float:
        """Bytes a training process may take: the default job stays below 3 GB, a longer one may use half of the
        machine; a GPU has most of its memory for this.
        """
        if self.device.type == "cuda":
            return 0.8 * self.machine.accelerator_memory
        seconds = self.recipe.budget_seconds or 0
        return max(2e9, min(self.machine.memory / 2, 2e9 * seconds / 1800))

    @property
    def evaluation_share(self) -> float:
        """Of the budget; a short one needs a larger share, since the number of problems does not shrink with it."""
        share, budget = self.recipe.evaluate.share, self.recipe.budget_seconds
        if "rl" not in self.recipe.stages:
            return _SCORING_SHARE
        if budget is None:
            return share
        seconds = _EVALUATION_SECONDS * max(1.0, _REFERENCE_RATE / self.rates.best)
        return max(share, min(_MOST_EVALUATION, seconds / budget))

    def share(self, stage: str) -> float:
        """Of the budget, for "sft" or "rl": the recipe's, less where a short budget leaves less for training."""
        if stage not in self.recipe.stages:
            return 0.0
        wanted: float = getattr(self.recipe, stage).share
        besides = (self.measuring_seconds + _REPORT_SECONDS) / (self.recipe.budget_seconds or math.inf)
        training = 1 - CORPUS_SHARE - besides - self.evaluation_share
        return wanted * max(0.0, training) / (1 - CORPUS_SHARE - self.recipe.evaluate.share)

    @property
    def classify_share(self) -> float:
        """Of the budget, for fine-tuning on classes of texts."""
        return 0.0 if self.recipe.classify is None else self.recipe.classify.share

    def tensorboard(self, stage: str) -> Path:
        return self.run.root / "tensorboard" / stage

    def seconds_left(self, reserve: float = 0.0) -> float:
        """Of the budget, after setting `reserve` (a share of it) aside; infinite without a budget."""
        budget = self.recipe.budget_seconds
        return float("inf") if budget is None else budget * (1 - reserve) - self.seconds - _REPORT_SECONDS

    @property
    def seconds(self) -> float:
        """Active seconds so far."""
        return self.measuring_seconds + self.run.seconds

    def perform(
        self,
        name: str,
        settings: Mapping[str, Any],
        inputs: Mapping[str, str],
        work: Callable[[Stage], Work],
    ) -> Stage:
        """One stage: skipped when it is finished, else done."""
        repeated = self.repeated and self.repeated.stages.get(name)
        if repeated is not None:
            settings = {**settings, "plan": fingerprint(repeated.model_dump(mode="json"))}
        stage = self.run.stage(name, settings, inputs)
        if stage.finished:
            other = (stage.exactness or {}).get("source") != source_fingerprint()
            by = " by another version of Athanor; --fresh makes it anew" if other else ""
            say(f"{name}: finished before, in {duration(stage.seconds)}{by}.")
            self._note_plans()
            return stage
        exactness = exactness_key(self.device) | {"kernels": training_kernels() is not None}
        exactness |= {"processes": self.group.size} if self.group.size > 1 else {}
        if stage.exactness not in (None, exactness):
            say(
                f"{name} was begun by another version, machine, or number of threads or processes, or without the "
                "kernels in C; it continues, not bit for bit."
            )
        stage.note_exactness(exactness)
        with stage.working():
            metrics, outputs, timing = work(stage)
            stage.finish(metrics, outputs, {**timing, "peak_memory_bytes": peak_memory()})
        return_memory()
        say(f"{name}: done in {duration(stage.seconds)}.")
        self._note_plans()
        return stage

    def plan(self, stage: Stage, kind: type[P], decide: Callable[[], P]) -> P:
        """The stage's plan, frozen when it starts: what the run that is repeated decided, else what `decide` says."""
        repeated: P | None = self.repeated.stages.get(stage.name) if self.repeated else None
        return kind.freeze(stage, decide if repeated is None else lambda: repeated)

    def _note_plans(self) -> None:
        """Keeps runs/NAME/plan.json up to date: with what the clock decided filled in, `--plan` repeats the run
        exactly.
        """
        plans = {}
        for name, stage in self.run.stages.items():
            if stage.finished and (stage.folder / "plan.json").exists():
                plans[name] = stage.read("plan.json")
                if (stage.folder / "journal.json").exists():
                    plans[name]["turns"] = stage.read("journal.json").get("turns")
        recipe = self.recipe.model_dump(mode="json")
        write_json(
            self.run.root / "plan.json", {"schema_version": PLAN_SCHEMA_VERSION, "recipe": recipe, "stages": plans}
        )
