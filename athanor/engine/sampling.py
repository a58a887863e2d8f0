"""From logits to the next token: the settings, and the one function that draws.

Each row is drawn by inverting its distribution at one uniform number keyed by (seed, position), so what a request says
does not depend on what else is in its batch. Filters follow the usual order: repetition penalty, temperature, top-k,
top-p, min-p.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from athanor.base.errors import AthanorError
from athanor.base.randomness import uniforms


@dataclass(frozen=True)
class Sampling:
    """temperature 0 is greedy. top_k 0, top_p 1 and min_p 0 switch those filters off; min_p is relative to the
    likeliest token.

    repetition_penalty divides positive and multiplies negative logits of tokens already there (Keskar et al. 2019).
    seed None: a fresh one for each request. suppress_tokens: ids that are never drawn.
    """

    temperature: float = 0.7
    top_k: int = 0
    top_p: float = 0.95
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    max_tokens: int = 256
    seed: int | None = None
    suppress_tokens: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name, (kind, valid, accepted) in _ACCEPTED.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, kind) or not valid(value):
                raise AthanorError(f"{name} = {value} cannot be used.", f"Accepted: {accepted}.")


_ACCEPTED: dict[str, tuple[Any, Callable[[Any], bool], str]] = {
    "temperature": (Real, lambda x: 0 <= x < inf, "0 or more"),
    "top_k": (Integral, lambda x: x >= 0, "0 (off) or more"),
    "top_p": (Real, lambda x: 0 < x <= 1, "above 0 and at most 1"),
    "min_p": (Real, lambda x: 0 <= x < 1, "at least 0 and below 1"),
    "repetition_penalty": (Real, lambda x: 0.01 <= x <= 100, "0.01 to 100; 1 switches it off"),
    "max_tokens": (Integral, lambda x: x >= 1, "1 or more"),
    "seed": (Integral | None, lambda x: True, "a whole number, or none"),
    "suppress_tokens": (tuple, lambda x: all(type(i) is int and i >= 0 for i in x), "ids from 0 upwards"),
}

# Dividing by less overflows fp32, and nothing but the likeliest token would be drawn anyway.
_GREEDY_BELOW = 1e-5
_BLOCK = 128  # places of the vocabulary summed together when drawing

GREEDY = Sampling(temperature=0.0)
AS_TRAINED = Sampling(temperature=1.0, top_p=1.0)


def penalise(logits: Tensor, seen: Sequence[Sequence[int]], penalty: float) -> Tensor:
    """Applies the repetition penalty to a copy of (rows, vocabulary) logits; seen: the ids of each row's text so
    far.
    """
    logits = logits.clone()
    for row, ids in zip(logits, seen, strict=True):
        index = torch.tensor(sorted(set(ids)), dtype=torch.int64)
        chosen = row[index]
        row[index] = torch.where(chosen > 0, chosen / penalty, chosen * penalty)
    return logits


def filtered_probabilities(logits: Tensor, sampling: Sampling) -> Tensor:
    """(rows, vocabulary) fp32 logits → what is drawn from, fp32; temperature above 0."""
    probabilities = torch.softmax(logits / sampling.temperature, dim=-1)
    if sampling.top_k and sampling.top_k < logits.shape[-1]:
        least = probabilities.topk(sampling.top_k, dim=-1).values[:, -1:]
        probabilities = probabilities.masked_fill(probabilities < least, 0.0)
        probabilities = probabilities / probabilities.sum(-1, keepdim=True)
    if sampling.top_p < 1:
        ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
        above = ordered.cumsum(-1) - ordered >= sampling.top_p  # the token that crosses the bound is kept
        above[:, 0] = False  # whatever fp32 makes of the bound
        probabilities = probabilities.masked_fill(torch.zeros_like(above).scatter(1, order, above), 0.0)
    if sampling.min_p > 0:
        least = sampling.min_p * probabilities.max(-1, keepdim=True).values
        probabilities = probabilities.masked_fill(probabilities < least, 0.0)
    return probabilities / probabilities.sum(-1, keepdim=True)


def draw(logits: Tensor, sampling: Sampling, keys: np.ndarray, positions: np.ndarray) -> Tensor:
    """The next token of each row, (rows,) int64.

    logits: (rows, vocabulary) fp32. keys: (rows,) uint64, one a request. positions: (rows,) int, tokens drawn so far.
    """
    if sampling.temperature < _GREEDY_BELOW:
        return logits.argmax(-1)
    return _invert(filtered_probabilities(logits, sampling), torch.from_numpy(uniforms(keys, positions)))


def _invert(weights: Tensor, uniform: Tensor) -> Tensor:
    """For each row the index at which its cumulative weight passes `uniform` of its total; never one of weight zero.

    First the block of 128 is found by the blocks' sums, then the place in it: two short cumulative sums for a long one.
    """
    blocks = torch.nn.functional.pad(weights, (0, -weights.shape[-1] % _BLOCK)).unflatten(-1, (-1, _BLOCK))
    ends = blocks.double().sum(-1).cumsum(-1)
    wanted = uniform * ends[:, -1]
    block = torch.searchsorted(ends, wanted[:, None], right=True).squeeze(1)
    rows = torch.arange(len(weights))
    within = blocks[rows, block].double().cumsum(-1)
    before = torch.where(block > 0, ends[rows, block - 1], 0.0)
    # Rounding must not carry the remainder past the block's own total.
    rest = torch.minimum(wanted - before, within[:, -1] * (1 - 1e-12))
    return block * _BLOCK + torch.searchsorted(within, rest[:, None], right=True).squeeze(1)
