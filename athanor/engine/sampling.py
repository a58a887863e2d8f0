"""From logits to the next token: the settings, and the one function that draws.

Each row is drawn by inverting its distribution at one uniform number keyed by (seed, position), so what a request says
does not depend on what else is in its batch. The order is the usual one: penalties, bias and bans, temperature, top-k,
top-p, min-p, typical.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import inf
from numbers import Integral, Real
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from athanor.base.errors import AthanorError
from athanor.base.randomness import uniforms
from athanor.engine.constraint import Constraint


@dataclass(frozen=True)
class Sampling:
    """temperature 0 is greedy. top_k 0, top_p 1, min_p 0 and typical_p 1 switch those filters off; min_p is relative to
    the likeliest token, typical_p keeps what is nearest to the expected surprise (Meister et al. 2023).

    repetition_penalty divides positive and multiplies negative logits of tokens already there (Keskar et al. 2019);
    presence_penalty and frequency_penalty are subtracted for tokens already said, once and as often as they were said.
    no_repeat_ngram_size: so many tokens in a row, the prompt's included, never come twice; 0 allows it, and what a
    constraint forces is said all the same.
    logit_bias: (id, what is added to its logit) pairs, or a mapping. suppress_tokens: ids that are never drawn.
    allowed_tokens: the only ids that are. stop: texts that end the answer and are not part of it. stop_ids: ids that
    end it besides the model's own. min_tokens: before these nothing ends it. seed None: a fresh one for each request.
    beams: above 1 the likeliest answers are searched with so many instead of drawn (temperature 0), and n of them told;
    scores are sums of log-probabilities over length ** length_penalty; early_stopping: True ends the search with
    `beams` answers that have ended, False when it expects no better one, "never" when there can be none.
    n: answers. logprobs: how many of the likeliest tokens are told beside each. prompt_logprobs: also tell the
    log-probabilities of the prompt's tokens. constraint: what an answer may look like; stop
    tokens then end it only where it may end, and min_tokens hold only while something may follow. Stop strings end it
    wherever they are.
    """

    temperature: float = 0.7
    top_k: int = 0
    top_p: float = 0.95
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    no_repeat_ngram_size: int = 0
    logit_bias: tuple[tuple[int, float], ...] = ()
    suppress_tokens: tuple[int, ...] = ()
    allowed_tokens: tuple[int, ...] = ()
    max_tokens: int = 256
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_ids: tuple[int, ...] = ()
    seed: int | None = None
    beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    n: int = 1
    logprobs: int = 0
    prompt_logprobs: bool = False
    constraint: Constraint | None = None

    def __post_init__(self) -> None:
        for name in ("suppress_tokens", "allowed_tokens", "stop", "stop_ids"):
            value = getattr(self, name)
            if isinstance(value, list):
                object.__setattr__(self, name, tuple(value))
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        if isinstance(self.logit_bias, dict | list):
            object.__setattr__(self, "logit_bias", _pairs(self.logit_bias))
        for name, (kind, valid, accepted) in _ACCEPTED.items():
            value = getattr(self, name)
            if (
                (isinstance(value, bool) and kind not in (bool, bool | str))
                or not isinstance(value, kind)
                or not valid(value)
            ):
                raise AthanorError(f"{name} = {value} cannot be used.", f"Accepted: {accepted}.")
        if self.min_tokens > self.max_tokens:
            raise AthanorError(
                f"min_tokens = {self.min_tokens} is more than max_tokens = {self.max_tokens}.", "Change one of them."
            )
        if self.beams > 1:
            self._check_beams()
        if self.allowed_tokens and not set(self.allowed_tokens) - set(self.suppress_tokens):
            raise AthanorError("All of allowed_tokens are among suppress_tokens.", "Nothing could be said.")

    def _check_beams(self) -> None:
        drawing = {"temperature": 0, "top_k": 0, "min_p": 0, "typical_p": 1}
        for name, off in drawing.items():
            if getattr(self, name) != off:
                raise AthanorError(
                    f"{name} = {getattr(self, name)} contradicts beams = {self.beams}: beam search draws nothing.",
                    f"Take {name} = {off}, or beams = 1.",
                )
        if self.constraint is not None:
            raise AthanorError("A constraint does not go with beams.", "Take beams = 1 and temperature 0.")
        if self.n > self.beams:
            raise AthanorError(f"n = {self.n} answers are more than beams = {self.beams}.", "Change one of them.")
        if self.stop:
            raise AthanorError("stop does not go with beams: only tokens end a beam.", "Take stop_ids.")

    @property
    def filters(self) -> tuple[float, ...]:
        """What of it `draw` looks at."""
        return self.temperature, self.top_k, self.top_p, self.min_p, self.typical_p

    def check(self, vocab_size: int) -> None:
        """Raises AthanorError for an id that a model of so many does not have."""
        biased = [token for token, _ in self.logit_bias]
        named = {"suppress_tokens": self.suppress_tokens, "allowed_tokens": self.allowed_tokens, "logit_bias": biased}
        for name, ids in {**named, "stop_ids": self.stop_ids}.items():
            if ids and max(ids) >= vocab_size:
                raise AthanorError(f"{name} names ids that this model of {vocab_size} does not have.")
        if len(set(self.suppress_tokens)) >= vocab_size:
            raise AthanorError("suppress_tokens names all ids.", "Nothing could be said.")


def _pairs(biases: dict[Any, Any] | list[Any]) -> tuple[Any, ...]:
    """As JSON has them: an object, whose keys are texts, or a list of lists."""
    pairs = biases.items() if isinstance(biases, dict) else biases
    return tuple(
        (int(pair[0]) if str(pair[0]).isdecimal() else pair[0], *pair[1:])
        if isinstance(pair, list | tuple) and pair
        else pair
        for pair in pairs
    )


def _are_ids(value: Any) -> bool:
    return all(type(i) is int and i >= 0 for i in value)


def _are_biases(value: Any) -> bool:
    pairs = all(isinstance(pair, tuple) and len(pair) == 2 for pair in value)
    return (
        pairs
        and _are_ids([i for i, _ in value])
        and all(isinstance(b, int | float) and abs(b) <= 1e4 for _, b in value)
    )


_ACCEPTED: dict[str, tuple[Any, Callable[[Any], bool], str]] = {
    "temperature": (Real, lambda x: 0 <= x < inf, "0 or more"),
    "top_k": (Integral, lambda x: x >= 0, "0 (off) or more"),
    "top_p": (Real, lambda x: 0 < x <= 1, "above 0 and at most 1"),
    "min_p": (Real, lambda x: 0 <= x < 1, "at least 0 and below 1"),
    "typical_p": (Real, lambda x: 0 < x <= 1, "above 0 and at most 1"),
    "repetition_penalty": (Real, lambda x: 0.01 <= x <= 100, "0.01 to 100; 1 switches it off"),
    "presence_penalty": (Real, lambda x: -100 <= x <= 100, "-100 to 100; 0 switches it off"),
    "frequency_penalty": (Real, lambda x: -100 <= x <= 100, "-100 to 100; 0 switches it off"),
    "no_repeat_ngram_size": (Integral, lambda x: x >= 0, "0 (off) or more"),
    "logit_bias": (tuple, _are_biases, "ids from 0 upwards with numbers from -10000 to 10000"),
    "max_tokens": (Integral, lambda x: x >= 1, "1 or more"),
    "min_tokens": (Integral, lambda x: x >= 0, "0 or more"),
    "seed": (Integral | None, lambda x: True, "a whole number, or none"),
    "beams": (Integral, lambda x: 1 <= x <= 256, "1 to 256"),
    "length_penalty": (Real, lambda x: -100 <= x <= 100, "-100 to 100"),
    "early_stopping": (bool | str, lambda x: x in (True, False, "never"), 'true, false or "never"'),
    "n": (Integral, lambda x: 1 <= x <= 4096, "1 to 4096"),
    "logprobs": (Integral, lambda x: 0 <= x <= 100, "0 to 100"),
    "prompt_logprobs": (bool, lambda x: True, "true or false"),
    "constraint": (Constraint | None, lambda x: True, "a constraint, or none"),
    "suppress_tokens": (tuple, _are_ids, "ids from 0 upwards"),
    "allowed_tokens": (tuple, _are_ids, "ids from 0 upwards"),
    "stop_ids": (tuple, _are_ids, "ids from 0 upwards"),
    "stop": (tuple, lambda x: all(isinstance(text, str) and text for text in x), "texts that are not empty"),
}

# Dividing by less overflows fp32, and nothing but the likeliest token would be drawn anyway.
_GREEDY_BELOW = 1e-5
_LIKELIEST = 256  # tokens that nearly always hold what top_p asks for
_BLOCK = 128  # places of the vocabulary summed together when drawing

GREEDY = Sampling(temperature=0.0)
AS_TRAINED = Sampling(temperature=1.0, top_p=1.0)


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
        self._always = named or self._penalised or sampling.no_repeat_ngram_size > 0
        self._text = list(prompt) if sampling.no_repeat_ngram_size else []
        self._banned = _index(sampling.suppress_tokens)

    def push(self, token: int) -> None:
        if self._penalised:
            self._there.add(token)
        if self._counted:
            self._said[token] += 1
        if self.sampling.no_repeat_ngram_size:
            self._text.append(token)

    def branch(self) -> Adjustment:
        """The same, to go on by itself."""
        other = copy.copy(self)
        other._there, other._said, other._text = set(self._there), Counter(self._said), self._text[:]
        return other

    def acts(self, said: int) -> bool:
        """Whether logits would be changed after so many tokens."""
        return self._always or self._counted or said < self.sampling.min_tokens

    def bans(self, token: int) -> bool:
        """Whether it is never drawn."""
        sampling = self.sampling
        named = bool(sampling.allowed_tokens) and token not in sampling.allowed_tokens
        return named or token in sampling.suppress_tokens or token in self.stop_ids

    def apply(self, row: Tensor, said: int, drafted: Sequence[int] = ()) -> None:
        """Changes (vocabulary,) logits in place. drafted: the last of the tokens said, which `push` was not told."""
        sampling = self.sampling
        there = self._there.union(drafted) if self._penalised else self._there
        counts_of = self._said + Counter(drafted) if self._counted and drafted else self._said
        if there:
            index = torch.tensor(sorted(there))
            chosen, penalty = row[index], sampling.repetition_penalty
            row[index] = torch.where(chosen > 0, chosen / penalty, chosen * penalty)
        if counts_of:
            index, counts = torch.tensor(list(counts_of)), torch.tensor(list(counts_of.values()))
            row[index] -= sampling.presence_penalty + sampling.frequency_penalty * counts
        if sampling.logit_bias:
            row[torch.tensor([i for i, _ in sampling.logit_bias])] += torch.tensor([b for _, b in sampling.logit_bias])
        if sampling.allowed_tokens:
            allowed = torch.tensor(sampling.allowed_tokens)
            kept = row[allowed]
            row.fill_(-torch.inf)[allowed] = kept
        if len(self._banned):
            row[self._banned] = -torch.inf
        if sampling.no_repeat_ngram_size:
            row[_repeating([*self._text, *drafted], sampling.no_repeat_ngram_size)] = -torch.inf
        if said < sampling.min_tokens and self.stop_ids:
            row[_index(tuple(sorted(self.stop_ids)))] = -torch.inf


def _repeating(tokens: Sequence[int], n: int) -> Tensor:
    """Tokens that would be the last of n in a row that are there already."""
    if len(tokens) < n:
        return _index(())
    there = np.lib.stride_tricks.sliding_window_view(np.array(tokens), n)
    same = (there[:, :-1] == np.array(tokens[len(tokens) - n + 1 :])).all(1)
    return torch.from_numpy(np.unique(there[same, -1]))


@lru_cache(maxsize=64)
def _index(ids: tuple[int, ...]) -> Tensor:
    return torch.tensor(ids, dtype=torch.int64)


def filtered_probabilities(logits: Tensor, sampling: Sampling) -> Tensor:
    """(rows, vocabulary) fp32 logits → what is drawn from, fp32; temperature above 0."""
    probabilities = torch.softmax(logits / sampling.temperature, dim=-1)
    if sampling.top_k and sampling.top_k < logits.shape[-1]:
        least = probabilities.topk(sampling.top_k, dim=-1).values[:, -1:]
        probabilities = probabilities.masked_fill(probabilities < least, 0.0)
        probabilities = probabilities / probabilities.sum(-1, keepdim=True)
    if sampling.top_p < 1:
        probabilities = _nucleus(probabilities, sampling.top_p)
    if sampling.min_p > 0:
        least = sampling.min_p * probabilities.max(-1, keepdim=True).values
        probabilities = probabilities.masked_fill(probabilities < least, 0.0)
    probabilities = probabilities / probabilities.sum(-1, keepdim=True)
    return _typical(probabilities, sampling.typical_p) if sampling.typical_p < 1 else probabilities


def _nucleus(probabilities: Tensor, mass: float) -> Tensor:
    """The likeliest that hold `mass`, in the order of their ids where they are alike; the one that crosses the bound
    is kept. Looks at the first few, and at all only in the rows where these are not enough.
    """
    if probabilities.shape[-1] <= 2 * _LIKELIEST:
        return _nucleus_of(probabilities, probabilities, None, mass)[0]
    likeliest, where = probabilities.topk(_LIKELIEST, dim=-1, sorted=False)
    where, back = where.sort(dim=-1)
    kept, enough = _nucleus_of(probabilities, likeliest.gather(1, back), where, mass)
    if not enough.all():
        kept[~enough] = _nucleus_of(probabilities[~enough], probabilities[~enough], None, mass)[0]
    return kept


def _nucleus_of(probabilities: Tensor, some: Tensor, where: Tensor | None, mass: float) -> tuple[Tensor, Tensor]:
    """What is left of (rows, vocabulary), and (rows,) whether `some` of it, at rising places `where`, said enough: the
    bound is crossed above the least of them, whose equals may be among the others.
    """
    ordered, order = some.sort(dim=-1, descending=True, stable=True)
    kept = ordered.cumsum(-1) - ordered < mass
    kept[:, 0] = True  # whatever fp32 makes of the bound
    last = ordered.gather(1, kept.sum(-1, keepdim=True) - 1)
    places = order if where is None else where.gather(1, order)
    left = torch.zeros_like(probabilities).scatter(1, places, ordered * kept)
    return left, (last > ordered[:, -1:]).squeeze(1)


def _typical(probabilities: Tensor, mass: float) -> Tensor:
    """Those whose surprise is nearest to the expected one, until they hold `mass`."""
    surprise = -probabilities.log()
    expected = (probabilities * surprise).nansum(-1, keepdim=True)
    order = (surprise - expected).abs().argsort(dim=-1, stable=True)
    ordered = probabilities.gather(1, order)
    beyond = ordered.cumsum(-1) - ordered >= mass
    beyond[:, 0] = False
    kept = probabilities.masked_fill(torch.zeros_like(beyond).scatter(1, order, beyond), 0.0)
    return kept / kept.sum(-1, keepdim=True)


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
