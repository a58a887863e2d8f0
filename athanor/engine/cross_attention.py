"""What the decoder of an encoder–decoder sees of its sources: read once, kept as long as anyone writes about them.

Keys and values lie in whole steps of keys, the rest masked, so that few shapes occur; what has the same shape is one
product, row by row (`same_bits`), so a sequence's numbers do not depend on who writes beside it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from athanor.engine.paged_attention import attended, product
from athanor.models.attention import CrossAttention

_LONG = 128  # places


@dataclass(frozen=True, eq=False)
class ReadSource:
    """layers: keys (heads, head_dim, places) and values (heads, places, head_dim) fp32 for each layer of the decoder;
    so keys need fewer rows to be multiplied with (`same_bits`). hidden: (places,) bool, those that are none.
    """

    layers: list[tuple[Tensor, Tensor]]
    hidden: Tensor


def kept(read: Sequence[tuple[Tensor, Tensor]]) -> ReadSource:
    """read: (1, heads, length, head_dim) pairs, as `EncoderDecoder.read` gives them."""
    length = read[0][0].shape[2]
    places = attended(length - 1)
    spare = places - length
    layers = [(F.pad(k[0].float().mT, (0, spare)), F.pad(v[0].float(), (0, 0, 0, spare))) for k, v in read]
    return ReadSource(
        [(keys.contiguous(), values) for keys, values in layers],
        torch.arange(places, device=read[0][0].device) >= length,
    )


class SourceGroup:
    """Sources of equally many places, about each of which n tokens are written: one batched product.

    rows: of all these tokens, source by source. layers: keys and values, (sources · heads, …).
    """

    def __init__(self, rows: Sequence[Sequence[int]], hidden: Tensor, layers: list[tuple[Tensor, Tensor]]) -> None:
        self.n, self.layers = len(rows[0]), layers
        flat = [row for some in rows for row in some]
        self._is_beginning = flat == [*range(len(flat))]
        self.rows = torch.tensor(flat, device=hidden.device)
        self.hidden = hidden[:, None, None]

    def is_everything(self, rows: int) -> bool:
        """Whether its rows are those of the whole step, in order."""
        return rows == len(self.rows) and self._is_beginning


@dataclass(frozen=True)
class _Together:
    """others: all but the first of the sources."""

    others: list[ref[ReadSource]]
    hidden: Tensor
    layers: list[tuple[Tensor, Tensor]]


class SideBySide:
    """Sources laid side by side for one product, kept from step to step while the same ones are written about."""

    def __init__(self) -> None:
        self._kept: WeakKeyDictionary[ReadSource, _Together] = WeakKeyDictionary()

    def of(self, reads: Sequence[ReadSource]) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """(sources, places) bool, places that are none, and each layer's keys and values."""
        first, *others = reads
        if not others:
            return first.hidden[None], first.layers
        found = self._kept.get(first)
        if found is None or [other() for other in found.others] != others:
            hidden = torch.stack([read.hidden for read in reads])
            layers = [_joined(pairs) for pairs in zip(*(read.layers for read in reads), strict=True)]
            found = _Together([ref(other) for other in others], hidden, layers)
            self._kept[first] = found
        return found.hidden, found.layers


def _joined(pairs: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    keys, values = zip(*pairs, strict=True)
    return torch.cat(keys), torch.cat(values)


def source_groups(pieces: Sequence[tuple[int, int, ReadSource]], side_by_side: SideBySide) -> list[SourceGroup]:
    """pieces: first row, tokens and source of each sequence. Long sources stay alone: to lay them side by side costs
    more than a product for each.
    """
    rows: defaultdict[ReadSource, list[int]] = defaultdict(list)
    for row, n, read in pieces:
        rows[read] += range(row, row + n)
    together: defaultdict[tuple[int, int, int], list[ReadSource]] = defaultdict(list)
    for read, own in rows.items():
        places = len(read.hidden)
        together[len(own), places, own[0] if places > _LONG else -1].append(read)
    return [SourceGroup([rows[read] for read in reads], *side_by_side.of(reads)) for reads in together.values()]


@dataclass(frozen=True)
class StepSources:
    """What one layer reads in a step."""

    layer: int
    groups: Sequence[SourceGroup]


class PagedCrossAttention(nn.Module):
    """A layer's cross-attention for the rows of many sequences; its matrices are those of `layer`."""

    def __init__(self, layer: CrossAttention) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, source: Any, mask: None) -> Tensor:
        """x: (1, rows, d_model). source: a `StepSources`; the rows that it does not name are padding."""
        layer = self.layer
        queries = layer.query(x)[0].unflatten(-1, (-1, layer.config.head_dim)).float()
        if len(source.groups) == 1 and source.groups[0].is_everything(len(queries)):
            mixed = self._mixed(queries, source.groups[0], source.layer).to(x.dtype)
        else:
            mixed = x.new_zeros(x.shape[1], queries.shape[1] * queries.shape[2])
            for group in source.groups:
                found = self._mixed(queries[group.rows], group, source.layer)
                mixed.index_copy_(0, group.rows, found.to(mixed.dtype))
        output: Tensor = layer.output(mixed[None])
        return output

    def _mixed(self, queries: Tensor, group: SourceGroup, layer: int) -> Tensor:
        """(sources · n, heads, head_dim) → (sources · n, heads · head_dim)."""
        keys, values = group.layers[layer]
        asked = queries.unflatten(0, (-1, group.n)).transpose(1, 2)
        scores = product(asked.flatten(0, 1), keys).view(*asked.shape[:3], -1).mul_(self.layer.scale)
        weights = scores.masked_fill_(group.hidden, -torch.inf).softmax(-1)
        found = product(weights.flatten(0, 1), values).view(asked.shape)
        return found.transpose(1, 2).reshape(len(queries), -1)
