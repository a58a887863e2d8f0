"""Computations whose result for a row does not depend on how many rows there are.

Libraries choose another kernel, with another order of summation, for other numbers of rows: with torch 2.13 on a CPU, a
product of 1, of 2 to 15 and of 16 or more rows may differ in the last bit, and where the limits lie depends on the
processor, the shape and the number of threads. A tile of 16 rows is therefore the definition; another number of rows
is used only after it has given the tile's bits once, on random numbers whose products nearly cancel.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch
from torch import Tensor

from athanor.models.config import ModelConfig, MoeConfig

TILE = 16
SIZES = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)
"""Numbers of rows that are used: each new one costs a library the choice of a kernel."""

_VECTOR = 64  # elements: two AVX-512 registers of 16-bit numbers, which torch's loops handle at a time
_ALIKE = 32  # columns that are quantised together
_GRAIN = 32_768  # elements below which torch does not use another thread
_SPLIT = 256  # rows from which on several products cost less than padding of more than `_WASTE`
_WASTE = 1.1
_STEP = 64  # rows, from there on

Compute = Callable[[Tensor], Tensor]

_known: dict[Hashable, bool] = {}


class RowByRow:
    """A computation that treats each row alone, the rows lying along `dim`.

    trial: makes the computation, with random weights of the same shape and kind, and its input of so many rows.
    key: what tells its kernels from those of others (shapes and types); the number of threads is added.
    """

    def __init__(self, trial: Callable[[int], tuple[Compute, Tensor]], key: Hashable, dim: int = 0) -> None:
        self.trial, self.key, self.dim = trial, key, dim
        self._held: set[tuple[int, int]] = set()  # numbers of rows and threads

    def __call__(self, compute: Compute, rows: Tensor) -> Tensor:
        n, dim = rows.shape[self.dim], self.dim
        now = n, torch.get_num_threads()
        if now in self._held or self._holds(n):
            self._held.add(now)
            return compute(rows)
        larger = next((size for size in SIZES if n <= size and self._holds(size)), None)
        if larger is not None and (n < _SPLIT or larger <= _WASTE * n):
            return compute(pad_rows(rows, larger, dim)).narrow(dim, 0, n)
        step = max(size for size in SIZES if size <= max(n, TILE) and self._holds(size))
        return torch.cat([self(compute, part.contiguous()) for part in rows.split(step, dim)], dim)

    def _holds(self, n: int) -> bool:
        if n == TILE:
            return True
        if n not in SIZES:
            return False
        key = (self.key, torch.get_num_threads(), n)
        if key not in _known:
            dim = self.dim
            compute, rows = self.trial(max(n, TILE))
            parts = [(pad_rows(part, TILE, dim), part.shape[dim]) for part in rows.split(TILE, dim)]
            tiles = torch.cat([compute(part).narrow(dim, 0, m) for part, m in parts], dim)
            _known[key] = torch.equal(compute(rows.narrow(dim, 0, n).contiguous()), tiles.narrow(dim, 0, n))
        return _known[key]


def row_count(n: int, widths: set[int]) -> int:
    """How many rows n tokens are computed as, in elementwise operations over rows of these widths."""
    found = next((size for size in SIZES if n <= size <= _SPLIT and _are_whole(size, widths)), 0)
    rows = -(-n // _STEP) * _STEP
    while not found:
        found = rows if _are_whole(rows, widths) else 0
        rows += _STEP
    return found


def _are_whole(rows: int, widths: set[int]) -> bool:
    """Whether torch cuts so many elements between vectors alone: what is left over of one is computed by other code,
    whose exponentials differ in the last bit.
    """
    for elements in (rows * width for width in widths):
        threads = min(torch.get_num_threads(), -(-elements // _GRAIN))
        if elements % _VECTOR or (threads > 1 and -(-elements // threads) % _VECTOR):
            return False
    return True


def widths(config: ModelConfig) -> set[int]:
    """Of what activations are applied to, of the states, and of the sines in them."""
    found = {config.d_model, config.d_model // 2 if config.embedding.sinusoidal else config.d_model}
    for layer in config.layers:
        if isinstance(layer.mlp, MoeConfig):
            found |= {layer.mlp.shared.d_ff} if layer.mlp.shared else set()
        else:
            found.add(layer.mlp.d_ff)
    return found


def pad_rows(rows: Tensor, n: int, dim: int = 0) -> Tensor:
    """`rows` with zeros behind them, n in all."""
    if rows.shape[dim] == n:
        return rows
    shape = list(rows.shape)
    shape[dim] = n
    padded = rows.new_zeros(shape)
    padded.narrow(dim, 0, rows.shape[dim]).copy_(rows)
    return padded


def cancelling(
    rows: int, n_out: int, n_in: int, dtype: torch.dtype, device: torch.device | None = None
) -> tuple[Tensor, Tensor]:
    """A matrix (n_out, n_in) and (rows, n_in) whose products would be zero if nothing were rounded. What is left shows
    in which order they were summed, even where results are rounded to few bits.
    """
    size = _ALIKE if n_in % _ALIKE == 0 else 1
    matrix, found = random_numbers(n_out, n_in, dtype=dtype), 64 * random_numbers(rows, n_in, dtype=dtype)
    order = torch.randperm(n_in // size, generator=torch.Generator().manual_seed(n_in))
    half = len(order) // 2
    one, other = order[:half], order[half : 2 * half]
    of_matrix, of_rows = matrix.unflatten(1, (-1, size)), found.unflatten(1, (-1, size))
    of_matrix[:, other], of_rows[:, other] = -of_matrix[:, one], of_rows[:, one]
    if half:
        of_rows[:, order[2 * half :]] = 0
    return matrix.to(device or "cpu"), found.to(device or "cpu")


def random_numbers(*shape: int, dtype: torch.dtype = torch.float32, device: torch.device | None = None) -> Tensor:
    """Normal, always the same for the same shape; no generator of anyone else is touched."""
    generator = torch.Generator().manual_seed(len(shape))
    return torch.randn(shape, generator=generator).to(device or "cpu", dtype)
