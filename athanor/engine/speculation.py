"""Speculation: tokens that are guessed cheaply and verified several at once (Leviathan et al. 2023).

A guess counts exactly if it is the token that would have been drawn in its place, so nothing of what is said depends on
speculation; that is all the more so because noise is keyed by seed and place, not drawn from a stream. How many tokens
are guessed is decided for each step by what was measured: how often guesses come true, what steps of so many rows take,
and what guessing takes itself.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, takewhile
from typing import Protocol
from weakref import WeakKeyDictionary

import numpy as np

from athanor.base.progress import say
from athanor.engine.sampling import Sampling
from athanor.engine.scheduler import Answer

MOST_GUESSED = 15  # tokens of an answer in a step: with the one before them they fill a block
_LONGEST_MATCH, _SHORTEST_MATCH = 16, 2
_RATE = 0.15  # weight of a new measurement
_CHANCE = 0.5  # that a guess comes true, before anything was measured
_ROW = 0.1  # what one more row takes, as a share of the first, before it was measured
_FORGOTTEN = 300  # steps after which the time of so many rows is measured again,
_TRUSTED = 10  # or this many for each time that it was measured
_PROBE = 16  # steps after which a dear drafter is tried again
_RESTING = 4  # while nothing is worth guessing for that long, every so many steps only are looked at
_LEAST_GAIN = 0.05  # tokens to be expected of one more row
_MARGIN = 0.02  # by which guessing has to be faster
_CHEAP = 0.02  # of a step: what may always be guessed, to see whether it would come true


@dataclass(frozen=True)
class Text:
    """An answer so far, and what decides how it goes on: plain data, so that what guesses may be on another machine
    than the model that verifies. tokens: (n,) int32, of which n_prompt are the prompt's. key: of the noise. source:
    what an encoder–decoder's answer is about, (m,) int32.
    """

    tokens: np.ndarray
    n_prompt: int
    sampling: Sampling
    key: int
    source: np.ndarray | None = None


class Drafter(Protocol):
    """What guesses. It may be wrong, slow or elsewhere: that changes speed alone."""

    def propose(self, text: Text, k: int) -> Sequence[int]:
        """At most k tokens that may follow."""
        ...


class Lookup:
    """Guesses that what followed the same tokens before, in the source, the prompt or the answer, follows again (Saxena
    2023): the longest match counts, among equally long ones the last.
    """

    def propose(self, text: Text, k: int) -> Sequence[int]:
        tokens = text.tokens if text.source is None else np.concatenate([text.source, text.tokens])
        length = 1
        ends = np.flatnonzero(tokens[:-1] == tokens[-1])
        while length < _LONGEST_MATCH and len(longer := ends[ends >= length]):
            longer = longer[tokens[longer - length] == tokens[-1 - length]]
            if not len(longer):
                break
            ends, length = longer, length + 1
        if not len(ends) or length < _SHORTEST_MATCH:
            return []
        # Where what followed reaches the present, it goes on as a repetition of itself.
        guess: list[int] = np.resize(tokens[ends[-1] + 1 :], k).tolist()
        return guess


class Speculation:
    """Decides how much is guessed, and learns from what came of it. vocab_size: of the model that verifies."""

    def __init__(self, drafter: Drafter, vocab_size: int) -> None:
        self._drafter, self._vocab_size = drafter, vocab_size
        self._failed: int | None = None  # the step in which the drafter failed last
        self._seconds: dict[int, tuple[float, int, int]] = {}  # rows → of a step; when and how often measured
        self._guessing = 0.0  # seconds a guessed token
        self._chance = _CHANCE  # of new answers
        self._steps = self._idle = 0  # steps, and those since something was last worth guessing
        self._guesses: WeakKeyDictionary[Answer, Sequence[int]] = WeakKeyDictionary()  # ended answers are let go
        self.drafted = self.accepted = 0

    def guesses(self, answers: Sequence[Answer], rows: int) -> dict[Answer, Sequence[int]]:
        """What to verify for each, in a step that computes `rows` rows anyway; only where something was guessed."""
        self._steps += 1
        resting = self._failed is not None and self._steps - self._failed < _FORGOTTEN
        if resting or (self._idle > _PROBE and self._steps % _RESTING):
            self._guesses.clear()
            return {}
        for answer in answers:
            answer.chance = self._chance if answer.chance is None else answer.chance
        chosen = self._choose(answers, rows)
        self._idle = 0 if chosen else self._idle + 1
        step = self._seconds[rows][0] if rows in self._seconds else 0.0
        tries = self._guessing < _CHEAP * step or self._steps % _PROBE == 0
        self._guesses.clear()
        asked = 0
        start = time.perf_counter()
        for answer in answers:
            k = min(chosen.get(answer, 0) or int(tries), answer.longest - answer.length - 1)
            if k > 0:
                self._guesses[answer] = self._propose(answer, k)
                asked += k
        if asked:
            self._guessing = _seconds(self._guessing, (time.perf_counter() - start) / asked)
        return {answer: guess for answer, guess in self._guesses.items() if answer in chosen and len(guess)}

    def _propose(self, answer: Answer, k: int) -> Sequence[int]:
        """What the drafter says, as far as it is tokens; nothing while it fails, for answers do not depend on it."""
        if self._failed == self._steps:
            return ()
        source = None if answer.source is None else np.asarray(answer.source.tokens, np.int32)
        text = Text(answer.tokens, answer.n_prompt, answer.request.sampling, answer.key, source)
        try:
            guess = self._drafter.propose(text, k)[:k]
            return [*takewhile(lambda token: 0 <= token < self._vocab_size, map(int, guess))]
        except Exception as error:  # of a program elsewhere, perhaps
            if self._failed is None:
                say(f"Guessing tokens has failed ({type(error).__name__}: {error}); answers go on without.")
            self._failed = self._steps
            return ()

    def _choose(self, answers: Sequence[Answer], rows: int) -> Counter[Answer]:
        """How many tokens to guess for each, so that the most tokens a second are to be expected."""
        gains: list[tuple[float, int, Answer]] = []
        for answer in answers:
            gain, chance = 1.0, answer.chance or 0.0
            for depth in range(MOST_GUESSED):
                gain *= chance
                if gain < _LEAST_GAIN:
                    break
                gains.append((gain, -depth, answer))
        if not gains:
            return Counter()
        gains.sort(key=lambda gain: gain[:2], reverse=True)
        expected = np.array([*accumulate((gain for gain, _, _ in gains), initial=float(len(answers)))])
        speeds = expected / (self._times(rows, len(expected)) + self._guessing * np.arange(len(expected)))
        speeds[0] *= 1 + _MARGIN
        return Counter(answer for _, _, answer in gains[: int(speeds.argmax())])

    def _times(self, rows: int, n: int) -> np.ndarray:
        """(n,) seconds that steps of `rows` rows and more take: as measured, or between and beyond what was."""
        known = sorted((rows, seconds) for rows, (seconds, *_) in self._seconds.items()) or [(1, 1.0)]
        last, seconds = known[-1]
        known.append((last + 1000, seconds * (1 + 1000 * _ROW / (1 + _ROW * (last - 1)))))
        measured, times = zip(*known, strict=True)
        return np.interp(np.arange(rows, rows + n), measured, times)

    def note_step(self, rows: int, seconds: float) -> None:
        """Learns what a step without prompts took; what was measured seldom, by chance or long ago is forgotten."""
        before, _, count = self._seconds.get(rows, (0.0, 0, 0))
        self._seconds[rows] = _seconds(before, seconds), self._steps, count + 1
        self._seconds = {
            n: (each, when, count)
            for n, (each, when, count) in self._seconds.items()
            if self._steps - when < min(_FORGOTTEN, _TRUSTED * count)
        }

    def note_tokens(self, answer: Answer, tokens: Sequence[int], verified: int) -> None:
        """Learns what was said where something had been guessed."""
        guess = self._guesses.get(answer, ())
        true = [said == guessed for said, guessed in zip(tokens, guess, strict=False)]
        for each in true:
            answer.chance = _mean(answer.chance or _CHANCE, each)
            self._chance = _mean(self._chance, each, _RATE / 10)
        self.drafted += verified
        self.accepted += sum(true[:verified])


def _mean(before: float, now: float, rate: float = _RATE) -> float:
    return before + rate * (now - before)


def _seconds(before: float, now: float) -> float:
    """A time that others' work on the machine, or a first call, made long counts less than a short one."""
    return _mean(before, min(now, 3 * before), _RATE if now > before else 0.5) if before else now
