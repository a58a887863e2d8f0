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
from athanor.training.compiling import Compile, compile_blocks, has_compiler

_LEAST_SECONDS = 1200.0  # of training: compiling takes about a minute, and saves an eighth to a fifth (docs/lab.md)


def choose_compile(life: Life, config: ModelConfig, micro_rows: int, length: int, seconds: float) -> Compile:
    """The recipe's wish; or what a probe says, where the training is long enough for one.

    Raises RecipeError for a wish that cannot be fulfilled.
    """
    recipe, device = life.recipe.pretrain, torch.device("cpu")
    if recipe.compile == "blocks" and not has_compiler(device):
        raise RecipeError(
            'pretrain.compile = "blocks" needs a C++ compiler, and there is none.', "Install g++, or leave it out."
        )
    if recipe.compile != "auto":
        return recipe.compile
    possible = life.group.size == 1 and recipe.recompute == "none" and has_compiler(device)
    if not possible or life.speed is None or recipe.steps is not None or seconds < _LEAST_SECONDS:
        return "none"
    return _probed(config, micro_rows, length, life.precision, seconds)


def _probed(config: ModelConfig, micro_rows: int, length: int, precision: str, seconds: float) -> Compile:
    plain = measure_training(config, micro_rows, length, precision)
    began = time.perf_counter()
    compiled = measure_training(config, micro_rows, length, precision, prepare=partial(compile_blocks, rows=micro_rows))
    spent = time.perf_counter() - began  # and as much again when training begins
    pays = (seconds - 2 * spent) * compiled > (seconds - spent) * plain
    say(
        f"Compiled, training is {compiled / plain:.2f} times as fast and begins {duration(spent)} later: "
        + ("it is compiled." if pays else "it is not compiled.")
    )
    return "blocks" if pays else "none"
