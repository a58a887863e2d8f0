"""What the engine is asked for, and what it answers: requests, events, completions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from numbers import Integral

import numpy as np

from athanor.base.errors import AthanorError
from athanor.base.randomness import request_key
from athanor.engine.logits import largest
from athanor.engine.sampling import Sampling
from athanor.models.config import ModelConfig


@dataclass(frozen=True)
class Request:
    """prompt: ids; for an encoder–decoder, what an answer begins with, and source: what is answered. stop_ids: what
    ends an answer, besides the sampling's. keys: of the noise, one an answer, by default made from the sampling's seed.
    salt: requests with different ones share no prefix in the cache.
    """

    prompt: Sequence[int]
    sampling: Sampling = field(default_factory=Sampling)
    stop_ids: frozenset[int] = frozenset()
    keys: Sequence[int] | None = None
    salt: str = ""
    source: Sequence[int] = ()

    def check(self, config: ModelConfig, encoder: ModelConfig | None = None) -> None:
        """Raises AthanorError for what this model cannot answer. encoder: of its sources, if it reads any."""
        vocab_size = config.vocab_size
        _check_ids("prompt", self.prompt, config.max_seq_len - 1, vocab_size)
        if encoder is not None:
            _check_ids("source", self.source, encoder.max_seq_len, encoder.vocab_size)
        elif len(self.source):
            raise AthanorError("This model reads no source.", "It continues its prompt.")
        if self.keys is not None and len(self.keys) != self.sampling.n:
            raise AthanorError(f"{len(self.keys)} keys were given for {self.sampling.n} answers.", "Give one for each.")
        if not all(type(key) is int and 0 <= key < 2**64 for key in self.keys or ()):
            raise AthanorError("Keys are whole numbers from 0 to 2^64 − 1.")
        if not all(isinstance(token, Integral) for token in self.stop_ids):
            raise AthanorError("stop_ids are whole numbers.")
        if self.stop_ids and not 0 <= min(self.stop_ids) <= max(self.stop_ids) < vocab_size:
            raise AthanorError(f"stop_ids names ids that this model of {vocab_size} does not have.")
        self.sampling.check(vocab_size)
        self._check_choice(vocab_size)

    def _check_choice(self, vocab_size: int) -> None:
        """Raises AthanorError where no token could be drawn before `min_tokens`."""
        sampling = self.sampling
        if not sampling.min_tokens:
            return
        barred = {*sampling.suppress_tokens, *sampling.stop_ids, *self.stop_ids}
        left = set(sampling.allowed_tokens) - barred if sampling.allowed_tokens else vocab_size - len(barred)
        if not left:
            raise AthanorError(
                f"Nothing can be said before min_tokens = {sampling.min_tokens}: all tokens are barred or end it.",
                "Allow more tokens, or take min_tokens = 0.",
            )


def _check_ids(name: str, ids: Sequence[int], longest: int, vocab_size: int) -> None:
    if not 0 < len(ids) <= longest:
        what = "is empty" if not len(ids) else f"has {len(ids)} tokens"
        raise AthanorError(f"The {name} {what}.", f"This model takes from 1 to {longest} tokens.")
    try:
        found = np.asarray(ids)
    except (TypeError, ValueError):  # of lists that differ in length
        found = np.empty((0, 0))
    if found.dtype.kind not in "iu" or found.ndim != 1:
        raise AthanorError(f"The {name} is not made of ids.", "Ids are whole numbers.")
    low, high = found.min(), found.max()
    if low < 0 or high >= vocab_size:
        raise AthanorError(
            f"The {name} has id {low if low < 0 else high}.", f"This model has ids from 0 to {vocab_size - 1}."
        )


@dataclass(frozen=True)
class TokenLogprob:
    """A token and its natural log-probability, of the unfiltered distribution at temperature 1."""

    token: int
    logprob: float


@dataclass(slots=True)
class Event:
    """Answer `index` of a request said `token` with log-probability `logprob` (natural, of the unfiltered distribution
    at temperature 1).

    text: what became certain with it, if the engine has a tokenizer. top: the likeliest tokens, if asked for.
    finish_reason: None, or on an answer's last event "stop" (a stop token or text, or a constraint that is satisfied
    and lets nothing follow), "length" or "cancelled". Where an answer ends without a token, that is −1. A token that a
    constraint forces is not computed unless `logprobs` are asked for; its log-probability is then given as 0. score: on
    the last event of what beam search found.
    """

    index: int
    token: int
    logprob: float
    text: str = ""
    finish_reason: str | None = None
    top: tuple[TokenLogprob, ...] = ()
    score: float | None = None


@dataclass
class Completion:
    """tokens: what was said, a stop token included. logprobs: one a token; top: the likeliest at each, if asked for.
    score: of beam search.
    """

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish_reason: str = "length"
    text: str = ""
    top: list[tuple[TokenLogprob, ...]] = field(default_factory=list)
    score: float | None = None

    def add(self, event: Event) -> None:
        if event.token >= 0:
            self.tokens.append(event.token)
            self.logprobs.append(event.logprob)
            if event.top:
                self.top.append(event.top)
        self.text += event.text
        self.score = event.score
        self.finish_reason = event.finish_reason or self.finish_reason


def likeliest(logprobs: np.ndarray, n: int) -> tuple[TokenLogprob, ...]:
    """logprobs: (vocabulary,)."""
    if not n:
        return ()
    values, ids = largest(logprobs, n)
    return tuple(TokenLogprob(token, value) for token, value in zip(ids.tolist(), values.tolist(), strict=True))


def gather(events: Iterable[Event], n: int) -> list[Completion]:
    completions = [Completion() for _ in range(n)]
    for event in events:
        completions[event.index].add(event)
    return completions


def request_keys(seed: int | None, n: int) -> np.ndarray:
    """(n,) uint64: of n answers; without a seed fresh ones."""
    if seed is None:
        return np.random.SeedSequence().generate_state(n, np.uint64)
    return np.array([request_key(seed, "request", i) for i in range(n)], dtype=np.uint64)
