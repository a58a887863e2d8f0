"""`athanor run`: the stages of a model's life, one after the other, within the time given.

Each stage is a function of a `Life` in `data_stages`, `training_stages` or `evaluation_stage`; this module opens the
run, measures the machine, keeps the time, and puts the report together.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, Field, ValidationError

import athanor
from athanor.base.errors import AthanorError, RecipeError
from athanor.base.files import fingerprint, read_json, write_json
from athanor.base.machine import Machine, Rates, describe, exactness_key, measure, peak_memory, usable_cores
from athanor.base.progress import duration, say
from athanor.base.run import RUNS, Run, Stage
from athanor.pipeline.folders import MODEL_STAGES
from athanor.pipeline.plans import PLAN_SCHEMA_VERSION, Plan, RunPlan
from athanor.pipeline.recipe import Recipe
from athanor.science.planner import Speed, measure_speed

P = TypeVar("P", bound=Plan)
Work = tuple[Mapping[str, Any], list[str], Mapping[str, Any]]
"""What a stage's work returns: metrics, outputs, timing."""

_EVALUATION_SECONDS, _REFERENCE_RATE = 45.0, 2e11  # what evaluation takes at least on a machine of so many FLOP/s
_REPORT_SECONDS = 5.0  # for drawing the report card, after everything is measured
_LONGEST_MEASURED = 2048  # places of a row; a longer one would take longer to measure than it tells
PRETRAIN_LENGTH = 256  # places of a row: most documents are shorter, and attention stays a small part


@dataclass
class Life:
    """What every stage knows. measuring_seconds: what measuring the machine took. repeated: the plans of another run,
    to be followed to the letter.
    """

    run: Run
    recipe: Recipe
    machine: Machine
    rates: Rates
    speed: Speed | None
    measuring_seconds: float
    repeated: RunPlan | None = None

    @property
    def seed(self) -> int:
        return self.recipe.seed

    @cached_property
    def precision(self) -> str:
        return self.rates.precision if self.recipe.precision == "auto" else self.recipe.precision

    @property
    def peak_rate(self) -> float:
        """FLOP/s: the machine's best measured matrix rate, whichever type it is reached in."""
        return self.rates.best

    @property
    def memory(self) -> float:
        """Bytes a training process may take: the default job stays below 3 GB, a longer one may use half of the
        machine.
        """
        seconds = self.recipe.budget_seconds or 0
        return max(2e9, min(self.machine.memory / 2, 2e9 * seconds / 1800))

    @property
    def evaluation_share(self) -> float:
        """Of the budget; a short one needs a larger share, since the number of problems does not shrink with it."""
        share, budget = self.recipe.evaluate.share, self.recipe.budget_seconds
        if budget is None:
            return share
        seconds = _EVALUATION_SECONDS * max(1.0, _REFERENCE_RATE / self.rates.best)
        return max(share, min(0.35, seconds / budget))

    def share(self, stage: str) -> float:
        """Of the budget, for "sft" or "rl": the recipe's, less where evaluation needs more than its own."""
        wanted: float = getattr(self.recipe, stage).share
        return wanted * (1 - self.evaluation_share) / (1 - self.recipe.evaluate.share)

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
            by = (stage.exactness or {}).get("athanor", athanor.__version__)
            version = "" if by == athanor.__version__ else f" by Athanor {by}; --fresh makes it anew"
            say(f"{name}: finished before, in {duration(stage.seconds)}{version}.")
            self._note_plans()
            return stage
        exactness = {**exactness_key(), "athanor": athanor.__version__}
        if stage.exactness not in (None, exactness):
            say(f"{name} was begun by another version, machine or number of threads; it continues, not bit for bit.")
        stage.note_exactness(exactness)
        with stage.working():
            metrics, outputs, timing = work(stage)
            stage.finish(metrics, outputs, {**timing, "peak_memory_bytes": peak_memory()})
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
            path, journal = stage.folder / "plan.json", stage.folder / "journal.json"
            if stage.finished and path.exists():
                plans[name] = read_json(path)
                if journal.exists():
                    plans[name]["turns"] = read_json(journal)["turns"]
        recipe = self.recipe.model_dump(mode="json")
        write_json(
            self.run.root / "plan.json", {"schema_version": PLAN_SCHEMA_VERSION, "recipe": recipe, "stages": plans}
        )


def run_folder(name: str) -> Path:
    """runs/NAME. Raises RecipeError for a name that would lie elsewhere."""
    if not re.fullmatch(r"[\w][\w.-]*", name):
        raise RecipeError(
            f"A run cannot be named {name!r}.", "Use letters, digits, '-', '_' and '.'; it lives in ./runs."
        )
    return RUNS / name


def live(recipe: Recipe, root: Path, *, fresh: bool = False, repeated: RunPlan | None = None) -> dict[str, Any]:
    """Carries out the whole recipe in the run folder `root` and returns the report.

    repeated: another run's plan, to be followed wherever it decides; its recipe is the one to give.
    """
    import torch

    from athanor.alignment.conversations import check_own_conversations, check_weights
    from athanor.pipeline.data_stages import corpus_stage, fetch_sources, shards_stage, tokenizer_stage
    from athanor.pipeline.evaluation_stage import evaluate_stage
    from athanor.pipeline.planning import expectation
    from athanor.pipeline.reporting import report_card
    from athanor.pipeline.training_stages import control_stage, pretrain_stage, rl_stage, sft_stage

    torch.set_num_threads(recipe.threads or usable_cores())
    check_weights(recipe.sft.weights or {})
    fetch_sources(recipe)
    check_own_conversations(recipe.sft.sources)
    with Run(root, recipe.model_dump(mode="json"), athanor.__version__, MODEL_STAGES, fresh=fresh) as run:
        life = Life(run, recipe, describe(), *_calibrate(recipe, root), repeated)
        if repeated:
            say("Repeating a plan: sizes, steps and turns are those of the run that it comes from.")
        elif life.speed:
            say(expectation(life))
        corpus = corpus_stage(life)
        tokenizer = tokenizer_stage(life, corpus)
        shards = shards_stage(life, corpus, tokenizer)
        base = pretrain_stage(life, tokenizer, shards)
        sft = sft_stage(life, tokenizer, base)
        rl = rl_stage(life, tokenizer, sft)
        control = control_stage(life, tokenizer, sft, rl)
        evaluation = evaluate_stage(life, tokenizer, shards, base, sft, rl, control)
        return report_card(life, evaluation)


def _calibrate(recipe: Recipe, root: Path) -> tuple[Rates, Speed | None, float]:
    """Measured once a run, so that a resumed one decides the same: the machine, and with a budget whole training
    steps; and the seconds that took.
    """
    path = root / "calibration.json"
    length = min(recipe.pretrain.length or PRETRAIN_LENGTH, _LONGEST_MEASURED)
    asked = {
        "vocab_size": recipe.tokenizer.vocab_size,
        "length": length,
        "precision": recipe.precision,
        "training": recipe.budget is not None,
    }
    found = _read_calibration(path)
    if found is None or found.asked != asked:
        say("Measuring the machine …")
        started = time.monotonic()
        rates = measure()
        precision = rates.precision if recipe.precision == "auto" else recipe.precision
        speed = measure_speed(recipe.tokenizer.vocab_size, length, precision) if recipe.budget else None
        found = _Calibration(asked=asked, rates=rates, speed=speed, seconds=time.monotonic() - started)
        write_json(path, found.model_dump(mode="json"))
    return found.rates, found.speed, found.seconds


class _Calibration(BaseModel):
    asked: dict[str, Any]
    rates: Rates
    speed: Speed | None
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)]


def _read_calibration(path: Path) -> _Calibration | None:
    """None where there is none that can be used: measuring again costs a few seconds."""
    try:
        found = _Calibration.model_validate(read_json(path))
    except (AthanorError, ValidationError):
        return None
    measured = [
        found.rates.fp32,
        found.rates.bf16,
        *((found.speed.small[1], found.speed.large[1]) if found.speed else ()),
    ]
    return found if all(0 < rate < float("inf") for rate in measured) else None
