"""From logits to the next token: what an answer's settings and history change, what they leave, and the one draw.

Each row is drawn by inverting its distribution at one uniform number keyed by (seed, position), so what a request says
does not depend on what else is in its batch. The order is the usual one: penalties, bias and bans, temperature, top-k,
top-p, min-p, typical. This is the definition, in numpy; where the kernels in C are compiled they draw, but for typical.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from athanor.base.randomness import uniforms
from athanor.engine.native.drawing import drawing_kernels
from athanor.engine.sampling import Sampling

# Dividing by less overflows fp32, and nothing but the likeliest token would be drawn anyway.
_GREEDY_BELOW = 1e-5
_LIKELIEST = 256  # tokens that nearly always hold what top_p asks for
_BLOCK = 128  # places of the vocabulary summed together when drawing
NO_NUMBERS = "The model's logits are not numbers.", "Its weights are damaged, or its products overflow."


class Adjustment:
    """What one answer's settings and history do to its logits before a token is drawn.

    stop_ids: cannot be drawn before `min_tokens`.
    """

    def __init__(self, sampling: Sampling, prompt: Sequence[int], stop_ids: frozenset[int]) -> None:
        self.sampling, self.stop_ids = sampling, stop_ids
        self._penalised = sampling.repetition_penalty != 1
        self._counted = sampling.presence_penalty != 0 or sampling.frequency_penalty != 0
        self._there = set(prompt) if self._penalised else set()
        self._said: Counter[int] = Counter()
        named = bool(sampling.logit_bias or sampling.suppress_tokens or sampling.allowed_tokens)
        self._never_twice = sampling.no_repeat_ngram_size
        self._text = list(prompt) if self._never_twice else []
        self._always = named or self._penalised or self._counted or self._never_twice > 0
        self._banned = _index(sampling.suppress_tokens)

    def push(self, token: int) -> None:
        if self._penalised:
            self._there.add(token)
        if self._counted:
            self._said[token] += 1
        if self._never_twice:
            self._text.append(token)

    def branch(self) -> Adjustment:
        """The same, to go on by itself."""
        other = copy.copy(self)
        other._there, other._said, other._text = set(self._there), Counter(self._said), self._text[:]
        return other

    def acts(self, said: int) -> bool:
        """Whether logits would be changed after so many tokens."""
        return self._always or said < self.sampling.min_tokens

    def bans(self, token: int) -> bool:
        """Whether it is never drawn."""
        sampling = self.sampling
        named = bool(sampling.allowed_tokens) and token not in sampling.allowed_tokens
        return named or token in sampling.suppress_tokens or token in self.stop_ids

    def apply(self, row: np.ndarray, said: int, drafted: Sequence[int] = ()) -> None:
        """Changes (vocabulary,) logits in place. drafted: the last of the tokens said, which `push` was not told."""
        sampling = self.sampling
        there = self._there.union(drafted) if self._penalised else self._there
        counts_of = self._said + Counter(drafted) if self._counted and drafted else self._said
        if there:
            index = np.fromiter(there, np.int64, len(there))
            chosen, penalty = row[index], sampling.repetition_penalty
            row[index] = np.where(chosen > 0, chosen / penalty, chosen * penalty)
        if counts_of:
            index = np.fromiter(counts_of, np.int64, len(counts_of))
            counts = np.fromiter(counts_of.values(), np.float32, len(counts_of))
            row[index] -= sampling.presence_penalty + sampling.frequency_penalty * counts
        for token, bias in sampling.logit_bias:
            row[token] += bias
        if sampling.allowed_tokens:
            allowed = _index(sampling.allowed_tokens)
            kept = row[allowed]
            row.fill(-np.inf)
            row[allowed] = kept
        if len(self._banned):
            row[self._banned] = -np.inf
        if self._never_twice:
            row[_repeating([*self._text, *drafted], self._never_twice)] = -np.inf
        if said < sampling.min_tokens and self.stop_ids:
            row[[*self.stop_ids]] = -np.inf


def _repeating(tokens: Sequence[int], n: int) -> np.ndarray:
    """Tokens that would be the last of n in a row that are there already."""
    if len(tokens) < n:
        return _index(())
    there = np.lib.stride_tricks.sliding_window_view(np.array(tokens), n)
    same = (there[:, :-1] == np.array(tokens[len(tokens) - n + 1 :])).all(1)
    return there[same, -1]


@lru_cache(maxsize=64)
def _index(ids: tuple[int, ...]) -> np.ndarray:
    return np.array(ids, dtype=np.int64)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """(..., vocabulary) fp32 → natural log-probabilities, fp32."""
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def chosen_logprobs(logits: np.ndarray, tokens: Sequence[int] | np.ndarray) -> np.ndarray:
    """(rows,) fp32, natural: of a token in each of (rows, vocabulary) logits."""
    if kernels := drawing_kernels():
        return kernels.logprobs(logits, np.asarray(tokens))
    shifted = logits - logits.max(-1, keepdims=True)
    chosen = shifted[np.arange(len(tokens)), tokens]
    np.exp(shifted, out=shifted)
    found: np.ndarray = chosen - np.log(shifted.sum(-1))
    return found


def largest(values: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """The n largest of (m,), falling, and where they are; equals in their order."""
    n = min(n, len(values))
    some = np.flatnonzero(values >= np.partition(values, -n)[-n])
    places = some[np.argsort(-values[some], kind="stable")][:n]
    return values[places], places


def filtered_weights(logits: np.ndarray, sampling: Sampling) -> np.ndarray:
    """(rows, vocabulary) fp32 logits → what is drawn from, fp32, up to a factor: the likeliest has 1; temperature above
    0.
    """
    weights = logits - logits.max(-1, keepdims=True)
    if sampling.temperature != 1:
        weights /= np.float32(sampling.temperature)
    np.exp(weights, out=weights)
    size = weights.shape[-1]
    if 0 < sampling.top_k < size:
        least = np.partition(weights, size - sampling.top_k, axis=-1)[:, size - sampling.top_k, None]
        weights *= weights >= least
    if sampling.top_p < 1:
        for row in weights:
            row *= _nucleus(row, sampling.top_p)
    if sampling.min_p > 0:
        weights *= weights >= np.float32(sampling.min_p)
    if sampling.typical_p < 1:
        for row in weights:
            row *= _typical(row, sampling.typical_p)
    return weights


def _nucleus(weights: np.ndarray, mass: float) -> np.ndarray:
    """Which of (vocabulary,) are the likeliest that hold `mass`, in the order of their ids where they are alike; the
    one that crosses the bound is kept. All are sorted only where the first few are not enough.
    """
    size = len(weights)
    ordered, n = weights, size
    if size > 2 * _LIKELIEST:
        ordered = np.sort(np.partition(weights, size - _LIKELIEST)[-_LIKELIEST:])[::-1]
        n = int(ordered.cumsum(dtype=np.float64).searchsorted(mass * float(weights.sum())))
    if n >= len(ordered) or ordered[n] == ordered[-1]:  # whose equals may be among the others
        ordered = np.sort(weights)[::-1]
        n = int(_invert(ordered[None], np.array([mass]))[0])
    kept = weights >= ordered[n]
    if extra := np.count_nonzero(kept) - (n + 1):
        kept[np.flatnonzero(weights == ordered[n])[-extra:]] = False
    return kept


def _typical(weights: np.ndarray, mass: float) -> np.ndarray:
    """Which of (vocabulary,) have a surprise nearest to the expected one, until they hold `mass`."""
    probabilities = weights / weights.sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        surprise = -np.log(probabilities)
        expected = np.nansum(probabilities * surprise)
    order = np.abs(surprise - expected).argsort(kind="stable")
    n = int(np.searchsorted(probabilities[order].cumsum(dtype=np.float64), mass)) + 1
    kept = np.zeros(len(weights), dtype=bool)
    kept[order[:n]] = True
    return kept


class Drawn(NamedTuple):
    """tokens: (rows,) int64. logprobs: (rows,) fp32, natural, of the unfiltered distribution at temperature 1."""

    tokens: np.ndarray
    logprobs: np.ndarray


def draw(logits: np.ndarray, sampling: Sampling, keys: np.ndarray, positions: np.ndarray) -> Drawn:
    """The next token of each row.

    logits: (rows, vocabulary) fp32. keys: (rows,) uint64, one a request. positions: (rows,) int, tokens drawn so far.
    """
    if sampling.temperature < _GREEDY_BELOW:
        tokens = logits.argmax(-1)
        return Drawn(tokens, chosen_logprobs(logits, tokens))
    uniform = uniforms(keys, positions)
    if sampling.typical_p == 1 and (kernels := drawing_kernels()):
        how = sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p
        return Drawn(*kernels.draw(logits, *how, uniform))
    tokens = _invert(filtered_weights(logits, sampling), uniform)
    return Drawn(tokens, chosen_logprobs(logits, tokens))


def _invert(weights: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """For each row the index at which its cumulative weight passes `uniform` of its total; never one of weight zero.

    First the block of 128 is found by the blocks' sums, then the place in it: two short cumulative sums for a long one.
    """
    if short := -weights.shape[-1] % _BLOCK:
        weights = np.pad(weights, ((0, 0), (0, short)))
    rows = np.arange(len(weights))
    blocks = weights.reshape(len(weights), -1, _BLOCK)
    ends = blocks.sum(-1, dtype=np.float64).cumsum(-1)
    below = 1 - 1e-12  # rounding must not carry anything past the end
    wanted = uniform * ends[:, -1] * below
    block = (ends <= wanted[:, None]).sum(-1)
    within = blocks[rows, block].cumsum(-1, dtype=np.float64)
    before = np.where(block > 0, ends[rows, block - 1], 0.0)
    rest = np.minimum(wanted - before, within[:, -1] * below)
    return block * _BLOCK + (within <= rest[:, None]).sum(-1)
