"""`athanor run`: the stages of a model's life, one after the other, within the time given.

Each stage is a function of a `Life`, which stands in `data_stages`, `training_stages` or `evaluation_stage`; this
module opens the run, measures the machine, and puts the report together.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, Field, ValidationError

import athanor
from athanor.alignment.conversations import check_own_conversations, check_weights
from athanor.base.errors import AthanorError
from athanor.base.files import read_json, write_json
from athanor.base.machine import Rates, describe, exactness_key, measure, usable_cores
from athanor.base.progress import say
from athanor.base.run import Run
from athanor.pipeline.data_stages import corpus_stage, fetch_sources, shards_stage, tokenizer_stage
from athanor.pipeline.evaluation_stage import evaluate_stage
from athanor.pipeline.folders import MODEL_STAGES
from athanor.pipeline.life import PRETRAIN_LENGTH, Life
from athanor.pipeline.planning import expectation
from athanor.pipeline.plans import RunPlan
from athanor.pipeline.recipe import Recipe
from athanor.pipeline.reporting import report_card
from athanor.pipeline.together import follow
from athanor.pipeline.training_stages import control_stage, pretrain_stage, rl_stage, sft_stage
from athanor.science.planner import Speed, measure_speed
from athanor.training.parallel import Group, connected

_LONGEST_MEASURED = 2048  # places of a row; a longer one would take longer to measure than it tells


def live(recipe: Recipe, root: Path, *, fresh: bool = False, repeated: RunPlan | None = None) -> dict[str, Any] | None:
    """Carries out the whole recipe in the run folder `root` and returns the report.

    repeated: another run's plan, to be followed wherever it decides; its recipe is the one to give. Started by a
    launcher of many processes, the first does everything, and the others, which return None, train with it.
    """
    with connected() as group:
        torch.set_num_threads(_threads(recipe, group))
        if not group.is_first:
            follow(group)
            return None
        try:
            return _live(recipe, root, fresh, repeated, group)
        finally:
            group.tell(None)


def _live(recipe: Recipe, root: Path, fresh: bool, repeated: RunPlan | None, group: Group) -> dict[str, Any]:
    check_weights(recipe.sft.weights or {})
    fetch_sources(recipe)
    check_own_conversations(recipe.sft.sources)
    with Run(root, recipe.model_dump(mode="json"), athanor.__version__, MODEL_STAGES, fresh=fresh) as run:
        life = Life(run, recipe, describe(), *_calibrate(recipe, root, group), repeated, group)
        if group.size > 1:
            say(f"{group.size} processes pre-train and fine-tune together; the first does everything else.")
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


def _threads(recipe: Recipe, group: Group) -> int:
    """No more than there are cores for each process: each further one only waits for the others."""
    cores = max(1, usable_cores() // group.local_size)
    if recipe.threads and recipe.threads > cores:
        say(f"threads = {recipe.threads} is more than there are cores for it; {cores} are used.")
    return min(recipe.threads or cores, cores)


def _calibrate(recipe: Recipe, root: Path, group: Group) -> tuple[Rates, Speed | None, float]:
    """Measured once a run, so that a resumed one decides the same: the machine, and with a budget whole training
    steps; and the seconds that took. Each of several processes is taken to train as fast as this one.
    """
    path = root / "calibration.json"
    length = min(recipe.pretrain.length or PRETRAIN_LENGTH, _LONGEST_MEASURED)
    asked = {
        "vocab_size": recipe.tokenizer.vocab_size,
        "length": length,
        "precision": recipe.precision,
        "training": recipe.budget is not None,
        "machine": {key: exactness_key()[key] for key in ("processor", "threads")},
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
    return found.rates, found.speed and found.speed.times(group.size), found.seconds


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
