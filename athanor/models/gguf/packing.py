"""Weights into GGUF's formats: what `quants` reads, written. Block formats round as llama.cpp does (quantize_row_*_ref
in ggml-quants.c), so that a file made here has the bytes of one made there.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from athanor.models.gguf.quants import FORMATS, Format

_BY_NAME = {form.name: (number, form) for number, form in FORMATS.items()}
_STEPS = {"Q8_0": 127, "Q4_0": 8}
"""How many times the scale of a block, a number of fp16, its largest number is."""


def format_named(name: str) -> tuple[int, Format]:
    """Its number in a file, and the format."""
    return _BY_NAME[name]


def largest(name: str) -> float:
    """The largest number that the format can hold."""
    dtype = _BY_NAME[name][1].dtype or torch.float16
    return torch.finfo(dtype).max * _STEPS.get(name, 1)


def pack(tensor: Tensor, name: str) -> np.ndarray:
    """The bytes of `tensor` in the format, uint8. Rows of block formats are multiples of its numbers long."""
    if name in _BLOCKS:
        rows = tensor.detach().float().reshape(-1, 32).numpy()
        return _BLOCKS[name](rows).reshape(-1)
    dtype = _BY_NAME[name][1].dtype
    assert dtype is not None
    plain = tensor.detach().to(dtype).contiguous().reshape(-1)
    return plain.view(torch.uint8).numpy()


def _scale(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """values: (blocks, 1) fp32 steps → their bytes as fp16, and what numbers are multiplied with."""
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.where(values == 0, np.float32(0), np.float32(1) / values)
        return values.astype(np.float16).view(np.uint8), inverse


def _q8_0(rows: np.ndarray) -> np.ndarray:
    step, inverse = _scale(np.abs(rows).max(axis=1, keepdims=True) / np.float32(127))
    scaled = rows * inverse
    rounded = np.sign(scaled) * np.floor(np.abs(scaled) + np.float32(0.5))  # halves away from zero
    return np.concatenate([step, rounded.astype(np.int8).view(np.uint8)], axis=1)


def _q4_1(rows: np.ndarray) -> np.ndarray:
    least = rows.min(axis=1, keepdims=True)
    step, inverse = _scale((rows.max(axis=1, keepdims=True) - least) / np.float32(15))
    numbers = np.minimum(np.trunc((rows - least) * inverse + np.float32(0.5)), 15).astype(np.uint8)
    return np.concatenate(
        [step, least.astype(np.float16).view(np.uint8), numbers[:, :16] | numbers[:, 16:] << 4], axis=1
    )


def _q4_0(rows: np.ndarray) -> np.ndarray:
    furthest = np.take_along_axis(rows, np.abs(rows).argmax(axis=1, keepdims=True), axis=1)
    step, inverse = _scale(furthest / np.float32(-8))
    numbers = np.minimum(np.trunc(rows * inverse + np.float32(8.5)), 15).astype(np.uint8)
    return np.concatenate([step, numbers[:, :16] | numbers[:, 16:] << 4], axis=1)


_BLOCKS: dict[str, Callable[[np.ndarray], np.ndarray]] = {"Q8_0": _q8_0, "Q4_0": _q4_0, "Q4_1": _q4_1}
