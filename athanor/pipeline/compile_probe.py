"""Whether compiling pays: tried with the model and the batches that are about to be trained, on the budget's time."""

from __future__ import annotations

import time
from functools import partial

import torch

from athanor.base.errors import RecipeError
from athanor.base.progress import duration, say
from athanor.models.config import ModelConfig
from athanor.pipeline.life import Life
from athanor.science.planner import measure_training
from athanor.training.acceleration import accelerate
from athanor.training.compiling import Compile, has_compiler

# Of training: on a CPU compiling takes about a minute and saves an eighth to a fifth, on a GPU ten seconds and a third
# (docs/lab.md).
_LEAST_SECONDS = {"cpu": 1200.0, "cuda": 120.0}


def choose_compile(life: Life, config: ModelConfig, micro_rows: int, length: int, seconds: float) -> Compile:
    """The recipe's wish; or what a probe says, where the training is long enough for one.

    Raises RecipeError for a wish that cannot be fulfilled.
    """
    recipe, device = life.recipe.pretrain, life.device
    if recipe.compile == "blocks" and not has_compiler(device):
        raise RecipeError(
            'pretrain.compile = "blocks" needs a C++ compiler, and there is none.', "Install g++, or leave it out."
        )
    if recipe.compile != "auto":
        return recipe.compile
    possible = life.group.size == 1 and recipe.recompute == "none" and has_compiler(device)
    if not possible or life.speed is None or recipe.steps is not None or seconds < _LEAST_SECONDS[device.type]:
        return "none"
    return _probed(config, micro_rows, length, life.precision, seconds, device)


def _probed(
    config: ModelConfig, micro_rows: int, length: int, precision: str, seconds: float, device: torch.device
) -> Compile:
    measured = partial(measure_training, config, micro_rows, length, precision, device=device)
    plain = measured()
    began = time.perf_counter()
    compiled = measured(prepare=partial(accelerate, device=device, compiled_rows=micro_rows))
    spent = time.perf_counter() - began  # and as much again when training begins
    pays = (seconds - 2 * spent) * compiled > (seconds - spent) * plain
    say(
        f"Compiled, training is {compiled / plain:.2f} times as fast and begins {duration(spent)} later: "
        + ("it is compiled." if pays else "it is not compiled.")
    )
    return "blocks" if pays else "none"
