"""What the engine is asked for, and what it answers: requests, events, completions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from athanor.base.errors import AthanorError
from athanor.base.randomness import request_key
from athanor.engine.sampling import Sampling
from athanor.models.config import ModelConfig


@dataclass(frozen=True)
class Request:
    """prompt: ids. stop_ids: what ends an answer, besides the sampling's. keys: of the noise, one an answer, by default
    made from the sampling's seed. salt: requests with different ones share no prefix in the cache.
    """

    prompt: Sequence[int]
    sampling: Sampling = field(default_factory=Sampling)
    stop_ids: frozenset[int] = frozenset()
    keys: Sequence[int] | None = None
    salt: str = ""

    def check(self, config: ModelConfig) -> None:
        """Raises AthanorError for what this model cannot answer."""
        limit, vocab_size = config.max_seq_len, config.vocab_size
        if not 0 < len(self.prompt) < limit:
            what = "is empty" if not self.prompt else f"has {len(self.prompt)} tokens"
            raise AthanorError(f"The prompt {what}.", f"This model takes from 1 to {limit - 1} tokens.")
        low, high = min(self.prompt), max(self.prompt)
        if low < 0 or high >= vocab_size:
            wrong = low if low < 0 else high
            raise AthanorError(f"The prompt has id {wrong}.", f"This model has ids from 0 to {vocab_size - 1}.")
        if self.keys is not None and len(self.keys) != self.sampling.n:
            raise AthanorError(f"{len(self.keys)} keys were given for {self.sampling.n} answers.", "Give one for each.")
        self.sampling.check(vocab_size)


@dataclass(frozen=True)
class TokenLogprob:
    """A token and its natural log-probability, of the unfiltered distribution at temperature 1."""

    token: int
    logprob: float


@dataclass(frozen=True)
class Event:
    """Answer `index` of a request said `token` with log-probability `logprob` (natural, of the unfiltered distribution
    at temperature 1).

    text: what became certain with it, if the engine has a tokenizer. top: the likeliest tokens, if asked for.
    finish_reason: None, or on an answer's last event "stop" (a stop token or text, or a constraint that is satisfied
    and lets nothing follow), "length" or "cancelled". Where an answer ends without a token, that is −1. A token that a
    constraint forces is not computed unless `logprobs` are asked for; its log-probability is then given as 0.
    """

    index: int
    token: int
    logprob: float
    text: str = ""
    finish_reason: str | None = None
    top: tuple[TokenLogprob, ...] = ()


@dataclass
class Completion:
    """tokens: what was said, a stop token included. logprobs: one a token; top: the likeliest at each, if asked for."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish_reason: str = "length"
    text: str = ""
    top: list[tuple[TokenLogprob, ...]] = field(default_factory=list)

    def add(self, event: Event) -> None:
        if event.token >= 0:
            self.tokens.append(event.token)
            self.logprobs.append(event.logprob)
            if event.top:
                self.top.append(event.top)
        self.text += event.text
        self.finish_reason = event.finish_reason or self.finish_reason


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
