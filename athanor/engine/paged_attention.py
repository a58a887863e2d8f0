"""Attention over a paged cache, for the tokens of many sequences at once.

Each token attends to a number of places that depends on its own place alone: the next of a short list of lengths, the
rest masked. Tokens that share a length and come in equal numbers are one batched product, so a step of many sequences
costs a layer a few products; and no sum depends on what else is there.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from mmap import ACCESS_COPY, mmap

import numpy as np
import torch
from torch import Tensor

from athanor.engine.rung import Segment
from athanor.engine.same_bits import SIZES, TILE, Compute, RowByRow, random_numbers
from athanor.models.attention import SequencesCache
from athanor.models.config import AttentionConfig, LatentAttentionConfig
from athanor.models.position_config import Alibi
from athanor.models.positions import alibi_slopes

_LEAST = 32  # keys: whole vectors
MOST_SCORES = 1 << 24  # of a group at a time


@lru_cache
def attended(place: int) -> int:
    """How many keys the token at `place` is multiplied with: 32, 64, 96, …, 256, 320, 384, 448, 512, 640, …"""
    step = _LEAST
    while place >= 8 * step:
        step *= 2
    return (place // step + 1) * step


@dataclass(frozen=True)
class _Piece:
    """Tokens of one sequence with the same number of keys. row: of the first among the step's tokens."""

    row: int
    place: int
    n: int
    blocks: np.ndarray


class Scratch:
    """Memory that every layer uses again: fresh memory costs more than what is done in it."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._kept: dict[torch.dtype, Tensor] = {}

    def of(self, rows: int, size: int, dtype: torch.dtype) -> Tensor:
        if dtype not in self._kept or self._kept[dtype].numel() < rows * size:
            self._kept[dtype] = torch.empty(rows * size, dtype=dtype, device=self._device)
        return self._kept[dtype][: rows * size].view(rows, size)


class Group:
    """Pieces of n tokens (shorter ones repeat their last) that attend to the same number of keys.

    nowhere: the block that stands for those that a sequence does not have yet.
    """

    def __init__(
        self, pieces: Sequence[_Piece], n: int, keys: int, block_size: int, nowhere: int, device: torch.device
    ) -> None:
        steps = np.minimum(np.arange(n)[None], np.array([[piece.n - 1] for piece in pieces]))
        rows = np.array([[piece.row] for piece in pieces]) + steps
        places = np.array([[piece.place] for piece in pieces]) + steps
        blocks = np.full((len(pieces), keys // block_size), nowhere, dtype=np.int64)
        for line, piece in zip(blocks, pieces, strict=True):
            own = piece.blocks[: len(line)]
            line[: len(own)] = own
        self.n, self.keys, self.size = n, keys, len(pieces)
        self.rows = torch.from_numpy(rows.reshape(-1)).to(device)
        self._in_order = bool((rows.reshape(-1) == np.arange(rows.size)).all())
        self.blocks = torch.from_numpy(blocks.reshape(-1)).to(device)
        self.distance = torch.from_numpy(places[..., None]).to(device) - torch.arange(keys, device=device)
        self._hidden: dict[int | None, Tensor] = {}
        self._relative: Tensor | None = None
        self._blocks: dict[int, Tensor] = {}

    def is_everything(self, rows: int) -> bool:
        """Whether its rows are those of the whole step, in order."""
        return rows == len(self.rows) and self._in_order

    def gather(self, cached: Tensor, scratch: Scratch, scales: Tensor | None = None) -> Tensor:
        """cached: (kv_heads, blocks, block_size · size) → (kv_heads, pieces, keys, size) fp32, until the next one.
        scales: (kv_heads, blocks, block_size), which the numbers are multiplied with.
        """
        heads, blocks, size = cached.shape
        if heads not in self._blocks:
            firsts = torch.arange(heads, device=cached.device)[:, None] * blocks
            self._blocks[heads] = (firsts + self.blocks).flatten()
        index = self._blocks[heads]
        found = scratch.of(len(index), size, cached.dtype)
        torch.index_select(cached.flatten(0, 1), 0, index, out=found)
        if cached.dtype != torch.float32:
            found = scratch.of(len(index), size, torch.float32).copy_(found)
        found = found.view(heads, self.size, self.keys, -1)
        if scales is not None:
            found *= scales.flatten(0, 1).index_select(0, index).view(heads, self.size, self.keys, 1)
        return found

    def hidden(self, window: int | None) -> Tensor:
        """(pieces, n, 1, keys) bool: what is not seen."""
        if window not in self._hidden:
            found = self.distance < 0
            if window is not None and window < self.keys:
                found |= self.distance >= window
            self._hidden[window] = found[:, :, None]
        return self._hidden[window]

    def relative(self, table: Tensor, kv_heads: int) -> Tensor:
        """table: (distances, heads), of the model → (kv_heads, pieces, n, shared, keys)."""
        if self._relative is None:
            found = table[self.distance.clamp(0, len(table) - 1)].unflatten(-1, (kv_heads, -1))
            self._relative = found.permute(3, 0, 1, 4, 2).contiguous()
        return self._relative


def groups(segments: Sequence[Segment], heads: int, block_size: int, nowhere: int, device: torch.device) -> list[Group]:
    """heads: the most query heads of a layer. nowhere: see `Group`."""
    found: defaultdict[tuple[int, int], list[_Piece]] = defaultdict(list)
    row = 0
    for segment in segments:
        place, end = segment.start, segment.start + len(segment.tokens)
        row -= place
        while place < end:
            keys = attended(place)
            n = min(keys, end) - place
            most = max(TILE, MOST_SCORES // (keys * heads))
            n = min(n, max(size for size in SIZES if size <= most))
            found[next(size for size in SIZES if size >= n), keys].append(_Piece(row + place, place, n, segment.blocks))
            place += n
        row += end
    made = []
    for (n, keys), pieces in found.items():
        together = max(1, MOST_SCORES // (n * keys * heads))
        made += [
            Group(pieces[i : i + together], n, keys, block_size, nowhere, device)
            for i in range(0, len(pieces), together)
        ]
    return made


class PagedLayer(SequencesCache):
    """One layer's cache: keys and values (kv_heads, blocks + 1, block_size · size).

    The last block stays zero; it stands where a sequence has none. With `eight_bits` they are int8, and there are fp32
    scales of each place, (kv_heads, blocks + 1, block_size).
    """

    def __init__(
        self,
        config: AttentionConfig | LatentAttentionConfig,
        blocks: int,
        block_size: int,
        dtype: torch.dtype,
        scratch: Scratch,
        device: torch.device,
        eight_bits: bool = False,
    ) -> None:
        self.block_size, self._scratch = block_size, scratch
        dtype = torch.int8 if eight_bits else dtype
        shape = config.n_kv_heads, blocks + 1
        self.keys = _untouched_zeros((*shape, block_size * config.key_dim), dtype, device)
        self.values = _untouched_zeros((*shape, block_size * config.value_dim), dtype, device)
        self.key_scales = self.value_scales = None
        if eight_bits:
            self.key_scales, self.value_scales = (
                _untouched_zeros((*shape, block_size), torch.float32, device) for _ in range(2)
            )
        self._key_places = self.keys.view(config.n_kv_heads, -1, config.key_dim)
        self._value_places = self.values.view(config.n_kv_heads, -1, config.value_dim)
        self.groups: list[Group] = []
        self.slots = self.fresh = torch.empty(0, dtype=torch.int64)
        self.relative: Tensor | None = None

    def begin(self, groups: list[Group], slots: Tensor, fresh: Tensor, relative: Tensor | None = None) -> None:
        """What the next `attend` is about. slots: (tokens,), block · block_size + place within; the rows behind these
        are padding. fresh: blocks whose first place is among the slots. relative: (distances, heads), added to
        the scores.
        """
        self.groups, self.slots, self.fresh, self.relative = groups, slots, fresh, relative

    def attend(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        config: AttentionConfig | LatentAttentionConfig,
        scale: float,
    ) -> Tensor:
        n = len(self.slots)
        if len(self.fresh):  # a masked value is added zero times, and zero times what is no number is none
            for part in (self.values, self.value_scales):
                if part is not None:
                    part.index_fill_(1, self.fresh, 0)
        self._keep(keys[0, :, :n], self._key_places, self.key_scales)
        self._keep(values[0, :, :n], self._value_places, self.value_scales)
        rows = queries[0].transpose(0, 1)
        if len(self.groups) == 1 and self.groups[0].is_everything(len(rows)):
            mixed = self._of_group(rows, self.groups[0], config, scale).to(rows.dtype)
            return mixed.transpose(0, 1)[None]
        mixed = rows.new_zeros(len(rows), rows.shape[1], config.value_dim)
        for group in self.groups:
            mixed.index_copy_(0, group.rows, self._of_group(rows[group.rows], group, config, scale).to(mixed.dtype))
        return mixed.transpose(0, 1)[None]

    @property
    def parts(self) -> list[Tensor]:
        """All that is kept, (kv_heads, blocks + 1, …) each."""
        return [part for part in (self.keys, self.values, self.key_scales, self.value_scales) if part is not None]

    def _keep(self, numbers: Tensor, places: Tensor, scales: Tensor | None) -> None:
        """numbers: (kv_heads, tokens, size). Of 8 bits, the largest of a place and head becomes 127."""
        if scales is not None:
            numbers = numbers.float()
            found = numbers.abs().amax(-1) / 127
            scales.view(len(scales), -1).index_copy_(1, self.slots, found)
            numbers = (numbers / torch.where(found > 0, found, 1)[..., None]).round_()
        places.index_copy_(1, self.slots, numbers.to(places.dtype))

    def _of_group(
        self, queries: Tensor, group: Group, config: AttentionConfig | LatentAttentionConfig, scale: float
    ) -> Tensor:
        """(pieces · n, heads, key_dim) → (pieces · n, heads, value_dim), computed in fp32."""
        n, kv_heads = group.n, len(self.keys)
        bias = _bias(group, config, scale, kv_heads)
        if self.relative is not None:
            bias = group.relative(self.relative, kv_heads)
        hidden = group.hidden(config.window)
        queries = queries.float().view(group.size, n, kv_heads, -1, queries.shape[-1])
        weights = _weights(
            queries, group.gather(self.keys, self._scratch, self.key_scales), hidden, bias, scale, config
        )
        mixed = _mixed(weights, group.gather(self.values, self._scratch, self.value_scales))
        return mixed.reshape(group.size * n, -1, config.value_dim)


def _untouched_zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros whose memory is taken page by page when it is written; torch.zeros would write all of it."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    count = math.prod(shape)
    pages = mmap(-1, count * dtype.itemsize, access=ACCESS_COPY)
    return torch.frombuffer(pages, dtype=dtype, count=count).view(shape)


def _bias(group: Group, config: AttentionConfig | LatentAttentionConfig, scale: float, kv_heads: int) -> Tensor | None:
    place = config.position
    if not isinstance(place, Alibi):
        return None
    slopes = alibi_slopes(config.n_heads).to(group.distance.device) * (scale if place.scaled else 1.0)
    return -slopes.view(kv_heads, 1, 1, -1, 1) * group.distance[:, :, None].float()


def _weights(
    queries: Tensor,
    keys: Tensor,
    hidden: Tensor,
    bias: Tensor | None,
    scale: float,
    config: AttentionConfig | LatentAttentionConfig,
) -> Tensor:
    """queries: (pieces, n, kv_heads, shared, key_dim); keys: (kv_heads, pieces, keys, key_dim); hidden: (pieces, n, 1,
    keys). Returns (kv_heads, pieces, n, shared, keys), what the values are weighted with.
    """
    kv_heads, pieces, attended_keys, _ = keys.shape
    shape = kv_heads, pieces, queries.shape[1], queries.shape[3], attended_keys
    flat = queries.permute(2, 0, 1, 3, 4).reshape(kv_heads * pieces, -1, queries.shape[-1])
    scores = product(flat, keys.flatten(0, 1).mT).view(shape).mul_(scale)
    cap = config.soft_cap if isinstance(config, AttentionConfig) else None
    if cap is not None:
        scores = scores.div_(cap).tanh_().mul_(cap)
    if bias is not None:
        scores += bias
    return scores.masked_fill_(hidden, -torch.inf).softmax(-1)


def _mixed(weights: Tensor, values: Tensor) -> Tensor:
    """(pieces, n, kv_heads, shared, value_dim)."""
    mixed = product(weights.flatten(0, 1).flatten(1, 2), values.flatten(0, 1))
    return mixed.view(*weights.shape[:-1], -1).permute(1, 2, 0, 3, 4)


def product(left: Tensor, right: Tensor) -> Tensor:
    """torch.bmm in the type of its operands, whatever autocast says, row by row: left (batch, rows, in), right (batch,
    in, out).
    """
    n_in, n_out = right.shape[1:]
    across = right.stride(1) == 1

    def trial(rows: int) -> tuple[Compute, Tensor]:
        other = random_numbers(2, n_out, n_in).mT if across else random_numbers(2, n_in, n_out)
        other = other.to(right.device)
        return lambda some: torch.bmm(some, other), random_numbers(2, rows, n_in, device=right.device)

    by_row = RowByRow(trial, ("bmm", n_in, n_out, across, right.device.type), dim=1)
    if not torch.is_autocast_enabled(right.device.type):
        return by_row(lambda some: torch.bmm(some, right), left)
    with torch.autocast(right.device.type, enabled=False):
        return by_row(lambda some: torch.bmm(some, right), left)
