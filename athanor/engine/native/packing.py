"""Weights in the layouts that the kernels read (`kernels.h` shows them): tiles of 16 rows, in which the same columns of
all rows lie side by side. Packed weights are made when a model is loaded and never saved.

Four number formats are made from floating point, three more can be taken over from GGUF blocks as they are.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from athanor.base.errors import ModelError
from athanor.engine.native.library import Matrix

Format = Literal["fp32", "bf16", "int8", "int4"]
CACHES = ("fp32", "fp16", "int8")
"""Number formats of keys and values, as the kernels number them."""
LANES, GROUP = 16, 32
F32, BF16, INT8, Q8_0, Q4_0, Q4_1 = range(6)
KINDS_OF_BLOCKS = {"Q8_0": Q8_0, "Q4_0": Q4_0, "Q4_1": Q4_1}
KINDS: dict[str, int] = {"fp32": F32, "bf16": BF16, "int8": INT8, "int4": Q4_0}
_BITS = {F32: 32, BF16: 16, INT8: 8, Q8_0: 8, Q4_0: 4, Q4_1: 4}
_BYTES = {Q8_0: 34, Q4_0: 18, Q4_1: 20}  # of a block in a file
_AT_A_TIME = 1 << 22  # weights that are packed together, so that copies stay small


def padded(size: int, unit: int) -> int:
    return -(-size // unit) * unit


class Arena:
    """One piece of memory on huge pages, given out in aligned parts."""

    def __init__(self, size: int) -> None:
        # Shared memory, which mmap takes by default, gets no huge pages.
        self._memory = mmap.mmap(-1, max(size, mmap.PAGESIZE), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            self._memory.madvise(mmap.MADV_HUGEPAGE)
        self._bytes = np.frombuffer(self._memory, dtype=np.uint8)
        self._used = 0

    def take(self, shape: tuple[int, ...], dtype: type) -> np.ndarray:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        part = self._bytes[self._used : self._used + size]
        self._used += padded(size, 64)
        return part.view(dtype).reshape(shape)


@dataclass(frozen=True)
class Packed:
    """Memory for one matrix, and the structure that the kernels get. values: (tiles, …) uint8."""

    matrix: Matrix
    values: np.ndarray
    scales: np.ndarray | None
    minima: np.ndarray | None
    bias: np.ndarray | None

    @property
    def bytes(self) -> int:
        return sum(part.nbytes for part in (self.values, self.scales, self.minima) if part is not None)


def packed_size(kind: int, rows: int, columns: int, bias: bool) -> int:
    """Bytes of an arena that `make` takes at most."""
    rows, columns = padded(rows, LANES), padded(columns, GROUP)
    extra = rows * columns // GROUP * 4 if kind in (Q8_0, Q4_0, Q4_1) else rows * 4
    return rows * columns * _BITS[kind] // 8 + extra + (rows * 4 if bias else 0) + 256


def make(arena: Arena, kind: int, rows: int, columns: int, bias: bool) -> Packed:
    tiles, columns = padded(rows, LANES) // LANES, padded(columns, GROUP)
    values = arena.take((tiles, columns * LANES * _BITS[kind] // 8), np.uint8)
    scales = minima = None
    if kind == INT8:
        scales = arena.take((tiles * LANES,), np.float32)
    elif kind in (Q8_0, Q4_0, Q4_1):
        scales = arena.take((tiles, columns // GROUP, LANES), np.float16)
        minima = arena.take(scales.shape, np.float16) if kind == Q4_1 else None
    added = arena.take((tiles * LANES,), np.float32) if bias else None
    places = [None if part is None else part.ctypes.data for part in (values, scales, minima, added)]
    return Packed(Matrix(*places, kind, rows, columns, 0), values, scales, minima, added)


def fill(packed: Packed, weight: Tensor, bias: Tensor | None, blocks: Tensor | None = None) -> None:
    """Packs (rows, columns) floating-point weights, or instead of them blocks of the same matrix, with which
    `fill_blocks` is content. Raises ModelError for those that are not finite.
    """
    if packed.bias is not None and bias is not None:
        packed.bias[: len(bias)] = bias.detach().float().numpy()
    if blocks is not None:
        fill_blocks(packed, blocks)
        return
    for first, part in _parts(weight, packed.matrix.columns):
        if not torch.isfinite(part).all():
            raise ModelError(
                "The model has weights that are not numbers.", "Training has diverged, or the file is damaged."
            )
        _FILLS[packed.matrix.format](packed, first // LANES, part)


def _parts(weight: Tensor, columns: int) -> Iterator[tuple[int, Tensor]]:
    """(first row, fp32 rows), whole tiles, with zeros where rows or columns are lacking."""
    step = max(LANES, _AT_A_TIME // columns // LANES * LANES)
    for first in range(0, len(weight), step):
        part = weight[first : first + step].detach().float()
        yield first, torch.nn.functional.pad(part, (0, columns - part.shape[1], 0, -len(part) % LANES))


def _fill_f32(packed: Packed, tile: int, weight: Tensor) -> None:
    tiles = weight.view(-1, LANES, weight.shape[1]).transpose(1, 2)
    _put(packed, tile, tiles.contiguous())


def _fill_bf16(packed: Packed, tile: int, weight: Tensor) -> None:
    pairs = weight.bfloat16().view(-1, LANES, weight.shape[1] // 2, 2).transpose(1, 2)
    _put(packed, tile, pairs.contiguous().view(torch.int16))


def _fill_int8(packed: Packed, tile: int, weight: Tensor) -> None:
    """The largest of a row becomes 127."""
    assert packed.scales is not None
    scales = weight.abs().amax(1) / 127
    codes = (weight / torch.where(scales > 0, scales, 1)[:, None]).round_().add_(128).to(torch.uint8)
    packed.scales[tile * LANES :][: len(scales)] = scales.numpy()
    _put(packed, tile, _by_fours(codes))


def _fill_q4_0(packed: Packed, tile: int, weight: Tensor) -> None:
    """As in GGUF: of each group, the number of largest size becomes −8."""
    groups = weight.view(len(weight), -1, GROUP)
    extreme = groups.gather(2, groups.abs().argmax(2, keepdim=True))
    scales = _halves(extreme / -8)
    inverse = torch.where(scales != 0, 1 / scales.float(), 0)
    codes = (groups * inverse).round_().clamp_(-8, 7).add_(8).to(torch.uint8)
    _put_nibbles(packed, tile, codes[:, :, :16] | (codes[:, :, 16:] << 4))
    _put_halves(packed.scales, tile, scales[:, :, 0])


def _fill_q8_0(packed: Packed, tile: int, weight: Tensor) -> None:
    groups = weight.view(len(weight), -1, GROUP)
    scales = _halves(groups.abs().amax(2) / 127)
    inverse = torch.where(scales != 0, 1 / scales.float(), 0)
    codes = (groups * inverse[:, :, None]).round_().clamp_(-127, 127).add_(128).to(torch.uint8)
    _put(packed, tile, _by_fours(codes.view(weight.shape)))
    _put_halves(packed.scales, tile, scales)


def _fill_q4_1(packed: Packed, tile: int, weight: Tensor) -> None:
    groups = weight.view(len(weight), -1, GROUP)
    minima = _halves(groups.amin(2))
    scales = _halves((groups.amax(2) - minima.float()) / 15)
    inverse = torch.where(scales != 0, 1 / scales.float(), 0)
    codes = ((groups - minima[:, :, None]) * inverse[:, :, None]).round_().clamp_(0, 15).to(torch.uint8)
    _put_nibbles(packed, tile, codes[:, :, :16] | (codes[:, :, 16:] << 4))
    _put_halves(packed.scales, tile, scales)
    _put_halves(packed.minima, tile, minima)


def _halves(numbers: Tensor) -> Tensor:
    made = numbers.half()
    if not torch.isfinite(made).all():
        raise ModelError("The model has weights that are too large for scales in fp16.", "Choose int8 or bf16.")
    return made


def fill_blocks(packed: Packed, blocks: Tensor) -> None:
    """Takes over GGUF's Q8_0, Q4_0 or Q4_1 blocks. blocks: (rows, bytes of a row) uint8.

    Raises ModelError for scales that are not finite.
    """
    kind, rows, groups = packed.matrix.format, packed.matrix.rows, packed.matrix.columns // GROUP
    if blocks.shape != (rows, groups * _BYTES[kind]):
        raise ModelError(f"Blocks of the shape {tuple(blocks.shape)} do not make {rows} rows of {groups} blocks.")
    split = blocks.view(rows, groups, -1)
    split = torch.nn.functional.pad(split, (0, 0, 0, 0, 0, -rows % LANES))
    head = 4 if kind == Q4_1 else 2
    scales = split[:, :, :head].contiguous().view(torch.float16)
    if not torch.isfinite(scales).all():
        raise ModelError("The model has scales that are not numbers.", "The file is damaged.")
    _put_halves(packed.scales, 0, scales[:, :, 0])
    if kind == Q8_0:
        _put(packed, 0, _by_fours((split[:, :, head:] ^ 128).reshape(len(split), -1)))
        return
    _put_nibbles(packed, 0, split[:, :, head:])
    if kind == Q4_1:
        _put_halves(packed.minima, 0, scales[:, :, 1])


def _put_nibbles(packed: Packed, tile: int, both: Tensor) -> None:
    """both: (rows, groups, 16) uint8, column j in the low and j + 16 in the high half."""
    rows, groups, _ = both.shape
    _put(packed, tile, both.reshape(rows // LANES, LANES, groups, 4, 4).permute(0, 2, 3, 1, 4).contiguous())


def _put_halves(target: np.ndarray | None, tile: int, given: Tensor) -> None:
    """given: (rows, groups) fp16."""
    assert target is not None
    rows, groups = given.shape
    target[tile : tile + rows // LANES] = given.reshape(-1, LANES, groups).transpose(1, 2).numpy()


def _by_fours(codes: Tensor) -> Tensor:
    return codes.view(-1, LANES, codes.shape[1] // 4, 4).transpose(1, 2).contiguous()


def _put(packed: Packed, tile: int, tiles: Tensor) -> None:
    packed.values[tile : tile + len(tiles)] = tiles.numpy().view(np.uint8).reshape(len(tiles), -1)


_FILLS = {
    F32: _fill_f32, BF16: _fill_bf16, INT8: _fill_int8, Q8_0: _fill_q8_0, Q4_0: _fill_q4_0, Q4_1: _fill_q4_1
}  # fmt: skip
