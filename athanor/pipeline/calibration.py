"""What is measured before anything is planned: the machine's rates, and whole training steps.

Kept in `calibration.json`, so that a resumed run or experiment decides the same.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, Field, ValidationError

from athanor.base.errors import AthanorError
from athanor.base.files import read_json, write_json
from athanor.base.machine import Rates, exactness_key, measure, usable_cores
from athanor.base.progress import say
from athanor.pipeline.life import PRETRAIN_LENGTH
from athanor.pipeline.recipe import Recipe
from athanor.science.planner import Speed, batch_tokens, measure_speed
from athanor.training.parallel import ALONE

_SHORT_BUDGET = 300.0  # seconds, of which measuring takes less time
_RATE = {"cpu": 1e4, "cuda": 1e5}  # tokens a second, about, before anything was measured
_MOST_PLACES = {"cpu": 8192, "cuda": 32_768}  # of a measured batch
_LONGEST_MEASURED = 2048  # places of a row; a longer one would take longer to measure than it tells


def use_threads(recipe: Recipe, processes: int = 1) -> None:
    """No more than there are cores for each process here: each further one only waits for the others."""
    cores = max(1, usable_cores() // processes)
    if recipe.threads and recipe.threads > cores:
        say(f"threads = {recipe.threads} is more than there are cores for it; {cores} are used.")
    torch.set_num_threads(min(recipe.threads or cores, cores))


def calibrate(recipe: Recipe, root: Path, device: torch.device = ALONE.device) -> tuple[Rates, Speed | None, float]:
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
        "machine": {
            key: value for key, value in exactness_key(device).items() if key in ("processor", "threads", "accelerator")
        },
    }
    found = _read_calibration(path)
    if found is None or found.asked != asked:
        say("Measuring the machine …")
        started = time.monotonic()
        short = (recipe.budget_seconds or math.inf) < _SHORT_BUDGET
        rates = measure(1.0 if short else 3.0, device)
        precision = rates.precision if recipe.precision == "auto" else recipe.precision
        if device.type == "cpu" and precision == "fp16":
            precision = "fp32"  # a CPU is no measure of the other
        steps = 1 if short else 2
        speed = None
        if recipe.budget:
            places = _places(recipe, device)
            speed = measure_speed(recipe.tokenizer.vocab_size, length, precision, steps, device, places)
        found = _Calibration(asked=asked, rates=rates, speed=speed, seconds=time.monotonic() - started)
        write_json(path, found.model_dump(mode="json"))
    return found.rates, found.speed, found.seconds


def _places(recipe: Recipe, device: torch.device) -> int:
    """Of a batch to be measured: about what a run of this budget will have, for the optimizer's part of a step shrinks
    as batches grow.
    """
    kind = device.type
    return min(_MOST_PLACES[kind], batch_tokens(_RATE[kind] * (recipe.budget_seconds or 0.0)))


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
