"""Blocks that no kernel computes with, as blocks of a format that one does: Q4_K and Q5_0 keep their quantised numbers
and lose at most what rounding a scale to fp16 costs; the others are quantised again, to 8 bits a number.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from athanor.models.gguf.packing import format_named, pack
from athanor.models.gguf.quants import Bytes, q4_k_parts, q5_0_numbers, unpack

_AT_A_TIME = 1 << 22  # numbers, so that copies stay small


@dataclass(frozen=True)
class Loss:
    """Sums over a matrix: of its weights' squared differences, and of their squares."""

    error: float
    size: float


def convert_blocks(data: Tensor, source: str) -> tuple[Tensor, Loss]:
    """data: (rows, bytes of a row) uint8 in the format `source`; returned is the same in `TARGETS[source]`."""
    target = TARGETS[source]
    old, new = format_named(source)[1], format_named(target)[1]
    numbers = data.shape[1] // old.size * old.numbers
    step = max(1, _AT_A_TIME // numbers)
    parts, error, size = [], 0.0, 0.0
    with np.errstate(all="ignore"):  # a damaged scale, which whoever takes the blocks refuses
        for rows in data.split(step):
            blocks, shape = rows.contiguous().numpy().reshape(-1, old.size), (len(rows), numbers)
            given = unpack(blocks, old, shape).double()
            made = _CODES[source](blocks) if source in _CODES else pack(given, target)
            error += float((unpack(made, new, shape) - given).square().sum())
            size += float(given.square().sum())
            parts.append(torch.from_numpy(made.reshape(len(rows), -1)))
    return torch.cat(parts), Loss(error, size)


def _q4_k_as_q4_1(data: Bytes) -> np.ndarray:
    """Each block makes eight: scale · number − offset is scale · number + minimum."""
    wide, scales, offsets = q4_k_parts(data)
    wide, heads = wide.reshape(-1, 32), np.stack([scales, -offsets], axis=2).reshape(-1, 2)
    return np.concatenate([heads.astype(np.float16).view(np.uint8), wide[:, :16] | wide[:, 16:] << 4], axis=1)


def _q5_0_as_q8_0(data: Bytes) -> np.ndarray:
    return np.concatenate([data[:, :2], q5_0_numbers(data).view(np.uint8)], axis=1)


_CODES: dict[str, Callable[[Bytes], np.ndarray]] = {"Q4_K": _q4_k_as_q4_1, "Q5_0": _q5_0_as_q8_0}
TARGETS = {"Q4_K": "Q4_1"} | dict.fromkeys(("Q2_K", "Q3_K", "Q5_0", "Q5_1", "Q5_K", "Q6_K"), "Q8_0")
