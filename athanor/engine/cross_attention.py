"""What the decoder of an encoder–decoder sees of its sources: read once, kept as long as anyone writes about them.

Keys and values lie in whole steps of keys, the rest masked, so that few shapes occur; what has the same shape is one
product, row by row (`same_bits`), so a sequence's numbers do not depend on who writes beside it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from athanor.engine.paged_attention import attended, product
from athanor.models.attention import CrossAttention

_LONG = 128  # places


@dataclass(frozen=True)
class ReadSource:
    """layers: keys and values (heads, places, head_dim) fp32 for each layer of the decoder. hidden: (places,) bool,
    those that are none.
    """

    layers: list[tuple[Tensor, Tensor]]
    hidden: Tensor


def kept(read: Sequence[tuple[Tensor, Tensor]]) -> ReadSource:
    """read: (1, heads, length, head_dim) pairs, as `EncoderDecoder.read` gives them."""
    length = read[0][0].shape[2]
    places = attended(length - 1)
    layers = [
        (F.pad(keys[0].float(), (0, 0, 0, places - length)), F.pad(values[0].float(), (0, 0, 0, places - length)))
        for keys, values in read
    ]
    return ReadSource(layers, torch.arange(places, device=read[0][0].device) >= length)


class SourceGroup:
    """Sequences that write n tokens each about sources that take equally many places: one batched product.

    rows: of the first token of each.
    """

    def __init__(self, rows: Sequence[int], n: int, reads: Sequence[ReadSource]) -> None:
        self.n, self.reads = n, reads
        device = reads[0].hidden.device
        self.rows = (torch.tensor(rows)[:, None] + torch.arange(n)).flatten().to(device)
        self.hidden = torch.stack([read.hidden for read in reads])[:, None, None]

    def of(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values, (sequences · heads, places, head_dim)."""
        if len(self.reads) == 1:
            return self.reads[0].layers[layer]
        keys, values = zip(*(read.layers[layer] for read in self.reads), strict=True)
        return torch.cat(keys), torch.cat(values)


def source_groups(pieces: Sequence[tuple[int, int, ReadSource]]) -> list[SourceGroup]:
    """pieces: first row, tokens and source of each sequence. Long sources stay alone: to lay them side by side costs
    more than a product for each.
    """
    together: defaultdict[tuple[int, int, int], list[tuple[int, ReadSource]]] = defaultdict(list)
    for row, n, read in pieces:
        places = len(read.hidden)
        together[n, places, row if places > _LONG else -1].append((row, read))
    return [
        SourceGroup([row for row, _ in some], n, [read for _, read in some]) for (n, _, _), some in together.items()
    ]


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
        mixed = x.new_zeros(x.shape[1], queries.shape[1] * queries.shape[2])
        for group in source.groups:
            keys, values = group.of(source.layer)
            asked = queries[group.rows].unflatten(0, (-1, group.n)).transpose(1, 2)
            shape = (*asked.shape[:3], keys.shape[1])
            scores = product(asked.flatten(0, 1), keys.mT).view(shape).mul_(layer.scale)
            weights = scores.masked_fill_(group.hidden, -torch.inf).softmax(-1)
            found = product(weights.flatten(0, 1), values).view(asked.shape).transpose(1, 2).reshape(-1, mixed.shape[1])
            mixed.index_copy_(0, group.rows, found.to(mixed.dtype))
        output: Tensor = layer.output(mixed[None])
        return output
