"""What torch.compile around the blocks gives: training steps of eight rows of 256, plain (with the kernels in C) and
compiled by turns, and how long compiling takes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from statistics import median
from typing import Any

import torch
from _rows import row

from athanor.base.machine import measure, usable_cores
from athanor.models.build import build
from athanor.models.config import standard_config
from athanor.models.decoder import Decoder
from athanor.models.precision import autocast
from athanor.training.batches import Batch
from athanor.training.compiling import compile_blocks
from athanor.training.kernel_layers import use_kernels
from athanor.training.objectives import next_token

ISSUE = "C"
ROWS, LENGTH, STEPS = 8, 256, 8
SIZES = ((256, 4), (384, 4))


def rows() -> Iterator[dict[str, Any]]:
    torch.set_num_threads(usable_cores())
    precision = measure().precision
    tokens = torch.arange(ROWS * LENGTH).view(ROWS, LENGTH) % 8192
    places = torch.arange(LENGTH).expand(ROWS, LENGTH)
    batch = Batch(tokens, tokens.roll(-1, 1), places // 100, places)
    for d_model, n_layers in SIZES:
        config = standard_config(8192, LENGTH, d_model=d_model, n_layers=n_layers)
        plain, compiled = (build(config, seed=0) for _ in range(2))
        use_kernels(plain)
        compile_blocks(compiled, ROWS)
        first = _step(compiled, batch, precision) - _step(plain, batch, precision)
        pairs = [(_step(plain, batch, precision), _step(compiled, batch, precision)) for _ in range(STEPS)]
        ratio = median(one for one, _ in pairs) / median(other for _, other in pairs)
        yield row(f"compiled against plain, forward and backward pass, {d_model} wide", ratio, "times as fast")
        yield row(f"compiling, {d_model} wide", first, "s")


def _step(model: Decoder, batch: Batch, precision: str) -> float:
    began = time.perf_counter()
    with autocast(precision):
        loss = next_token(model, batch)
    (loss.sum / batch.n_targets).backward()
    model.zero_grad(set_to_none=True)
    return time.perf_counter() - began
