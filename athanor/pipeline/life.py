"""`athanor run`: the stages of a model's life, one after the other, within the time given.

Each stage is a function of a `Life` in `data_stages`, `training_stages` or `evaluation_stage`; this module opens the
run, measures the machine, keeps the time, and puts the report together.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import athanor
from athanor.base.errors import RecipeError
from athanor.base.files import fingerprint, read_json, write_json
from athanor.base.machine import Machine, Rates, describe, exactness_key, measure, peak_memory, usable_cores
from athanor.base.progress import duration, say
from athanor.base.run import Run, Stage
from athanor.engine.locate import RUNS
from athanor.pipeline.folders import MODEL_STAGES
from athanor.pipeline.recipe import Recipe
from athanor.science.planner import Speed, measure_speed

PLAN_SCHEMA_VERSION = 1
_EVALUATION_SECONDS = 45.0  # what evaluation takes at least, measured on the reference machine
PRETRAIN_LENGTH = 256  # places of a row: most documents are shorter, and attention stays a small part


@dataclass
class Life:
    """What every stage knows. repeated: the stages' plans of a plan file, to be followed to the letter."""

    run: Run
    recipe: Recipe
    machine: Machine
    rates: Rates
    speed: Speed | None
    repeated: Mapping[str, Any] = field(default_factory=dict)

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
        return share if budget is None else max(share, min(0.35, _EVALUATION_SECONDS / budget))

    def tensorboard(self, stage: str) -> Path:
        return self.run.root / "tensorboard" / stage

    def seconds_left(self, reserve: float = 0.0) -> float:
        """Of the budget, after setting `reserve` (a share of it) aside; infinite without a budget."""
        budget = self.recipe.budget_seconds
        return float("inf") if budget is None else budget * (1 - reserve) - self.run.seconds

    def perform(
        self,
        name: str,
        settings: Mapping[str, Any],
        inputs: Mapping[str, str],
        work: Callable[[Stage], tuple[Mapping[str, Any], list[str], Mapping[str, Any]]],
    ) -> Stage:
        """One stage: skipped when it is finished, else `work`, which returns metrics, outputs and timing."""
        repeated = self.repeated.get(name)
        settings = settings if repeated is None else {**settings, "plan": fingerprint(repeated)}
        stage = self.run.stage(name, settings, inputs)
        if stage.finished:
            say(f"{name}: finished before, in {duration(stage.seconds)}.")
            return stage
        if stage.exactness not in (None, exactness_key()):
            say(f"{name} was begun on another machine or with other threads; it continues, but not bit for bit.")
        stage.note_exactness(exactness_key())
        with stage.working():
            metrics, outputs, timing = work(stage)
            stage.finish(metrics, outputs, {**timing, "peak_memory_bytes": peak_memory()})
        say(f"{name}: done in {duration(stage.seconds)}.")
        self._note_plan(stage)
        return stage

    def plan(self, stage: Stage, decide: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The stage's plan, decided once and frozen; from the plan file where one is followed."""
        repeated = self.repeated.get(stage.name)
        return stage.freeze("plan.json", lambda: dict(repeated) if repeated is not None else decide())

    def _note_plan(self, stage: Stage) -> None:
        """Keeps runs/NAME/plan.json up to date: with what the clock decided filled in, `--plan` repeats the run
        exactly.
        """
        path = stage.folder / "plan.json"
        if not path.exists():
            return
        plan = read_json(path)
        journal = stage.folder / "journal.json"
        if journal.exists():
            plan["turns"] = read_json(journal)["turns"]
        whole = self.run.root / "plan.json"
        plans = read_json(whole)["stages"] if whole.exists() else {}
        write_json(whole, {"schema_version": PLAN_SCHEMA_VERSION, "stages": {**plans, stage.name: plan}})


def run_folder(name: str) -> Path:
    """runs/NAME. Raises RecipeError for a name that would lie elsewhere."""
    if not re.fullmatch(r"[\w][\w.-]*", name):
        raise RecipeError(
            f"A run cannot be named {name!r}.", "Use letters, digits, '-', '_' and '.'; it lives in ./runs."
        )
    return RUNS / name


def live(recipe: Recipe, root: Path, *, fresh: bool = False, plan_file: Path | None = None) -> dict[str, Any]:
    """Carries out the whole recipe in the run folder `root` and returns the report."""
    import torch

    from athanor.pipeline.data_stages import corpus_stage, fetch_sources, shards_stage, tokenizer_stage
    from athanor.pipeline.evaluation_stage import evaluate_stage
    from athanor.pipeline.reporting import report_card
    from athanor.pipeline.training_stages import control_stage, expectation, pretrain_stage, rl_stage, sft_stage

    torch.set_num_threads(recipe.threads or usable_cores())
    repeated = _read_plan(plan_file) if plan_file else {}
    fetch_sources(recipe)
    with Run(root, recipe.model_dump(mode="json"), athanor.__version__, MODEL_STAGES, fresh=fresh) as run:
        life = Life(run, recipe, describe(), *_calibrate(recipe, root), repeated)
        if life.speed:
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


def _calibrate(recipe: Recipe, root: Path) -> tuple[Rates, Speed | None]:
    """Measured once a run, so that a resumed one decides the same: the machine, and with a budget whole training
    steps.
    """
    path = root / "calibration.json"
    length = recipe.pretrain.length or PRETRAIN_LENGTH
    asked = {
        "vocab_size": recipe.tokenizer.vocab_size,
        "length": length,
        "precision": recipe.precision,
        "training": recipe.budget is not None,
    }
    found = read_json(path) if path.exists() else {}
    if found.get("asked") != asked:
        say("Measuring the machine …")
        rates = measure()
        precision = rates.precision if recipe.precision == "auto" else recipe.precision
        speed = measure_speed(recipe.tokenizer.vocab_size, length, precision).as_dict() if recipe.budget else None
        found = {"asked": asked, "rates": rates.as_dict(), "speed": speed}
        write_json(path, found)
    return Rates(**found["rates"]), Speed.from_dict(found["speed"]) if found["speed"] else None


def _read_plan(path: Path) -> dict[str, Any]:
    plan = read_json(path)
    if (
        not isinstance(plan, dict)
        or plan.get("schema_version") != PLAN_SCHEMA_VERSION
        or not isinstance(plan.get("stages"), dict)
    ):
        raise RecipeError(f"{path} is not a plan of this version.", "A finished run has one in runs/NAME/plan.json.")
    return plan["stages"]
