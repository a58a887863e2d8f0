"""What the decoder of an encoder–decoder sees of its sources: read once, kept as long as anyone writes about them.

Keys and values lie in whole steps of keys, the rest masked, so that few shapes occur; each sequence is multiplied with
its own source alone, row by row (`same_bits`), so its numbers do not depend on who writes beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from athanor.engine.paged_attention import attended, product
from athanor.models.attention import CrossAttention


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


@dataclass(frozen=True)
class StepSources:
    """What one layer reads in a step. pieces: first row, rows, and their source."""

    layer: int
    pieces: Sequence[tuple[int, int, ReadSource]]


class PagedCrossAttention(nn.Module):
    """A layer's cross-attention for the rows of many sequences; its matrices are those of `layer`."""

    def __init__(self, layer: CrossAttention) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, source: Any, mask: None) -> Tensor:
        """x: (1, rows, d_model). source: a `StepSources`; the rows that it does not name are padding."""
        layer = self.layer
        queries = layer.query(x)[0].unflatten(-1, (-1, layer.config.head_dim)).transpose(0, 1).float()
        mixed = x.new_zeros(x.shape[1], queries.shape[0] * queries.shape[2])
        for first, n, read in source.pieces:
            keys, values = read.layers[source.layer]
            scores = product(queries[:, first : first + n].contiguous(), keys.mT).mul_(layer.scale)
            weights = scores.masked_fill_(read.hidden, -torch.inf).softmax(-1)
            mixed[first : first + n] = product(weights, values).transpose(0, 1).flatten(1).to(mixed.dtype)
        found: Tensor = layer.output(mixed[None])
        return found
