"""The settings of drawing: what is accepted, what contradicts itself, what off is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from numbers import Integral, Real
from typing import Any, Literal

from athanor.base.errors import AthanorError
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
    tokens then end it only where it may end, and min_tokens hold only while something may follow; stop strings, which
    would cut it off anywhere, do not go with it.
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
        if self.stop and self.constraint is not None:
            raise AthanorError(
                "stop does not go with a constraint: what is cut off there would not be what the constraint asks for.",
                "Take stop_ids, which end an answer only where it may end, or let the constraint say where it ends.",
            )
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

GREEDY = Sampling(temperature=0.0)
AS_TRAINED = Sampling(temperature=1.0, top_p=1.0)
