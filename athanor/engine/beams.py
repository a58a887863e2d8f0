"""Beam search: the likeliest answers as a whole, not token by token.

The definition is that of transformers' `generate`: of (1 + stop ids, at least 2) · beams continuations the best that do
not end go on; those among the best `beams` that do are kept, by their sum of log-probabilities over
length ** length_penalty. Each beam is an answer of the scheduler; beams share the blocks of what they have in common,
and a block that two of them would write to is copied.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from athanor.base.errors import AthanorError
from athanor.engine.logits import NO_NUMBERS, largest, log_softmax
from athanor.engine.requests import TokenLogprob, likeliest

if TYPE_CHECKING:
    from athanor.engine.scheduler import Answer, Scheduler


@dataclass(frozen=True, eq=False)  # else hashed along all that was said before
class Said:
    """A token and, through `before`, all that was said before it. logprob, top: as `Event` has them."""

    token: int
    logprob: float
    top: tuple[TokenLogprob, ...]
    before: Said | None

    def all(self) -> list[Said]:
        found, last = list[Said](), self
        while True:
            found.append(last)
            if last.before is None:
                return found[::-1]
            last = last.before


@dataclass(frozen=True, eq=False)
class Beam:
    """score: the sum of its log-probabilities, after penalties and bans."""

    answer: Answer
    score: float
    said: Said | None


@dataclass(frozen=True)
class Hypothesis:
    """An answer that has ended. score: its sum of log-probabilities over length ** length_penalty."""

    score: float
    said: Said


class BeamSearch:
    """One request's. answers: as many as beams, of which the first reads the prompt."""

    def __init__(self, answers: list[Answer]) -> None:
        first = answers[0]
        self.request, self.sampling = first.request, first.request.sampling
        self.live, self._free = [Beam(first, 0.0, None)], answers[1:]
        self.finished: list[Hypothesis] = []
        self._rows: dict[Answer, np.ndarray] = {}
        self._width = max(2, 1 + len(first.stop_ids)) * self.sampling.beams
        # The token that a translation is forced to begin with counts as said.
        self._before = 1 if len(first.request.source) else first.n_prompt

    def note(self, answer: Answer, logits: np.ndarray) -> bool:
        """Takes the logits after what a beam has said; whether it was the last that was missing."""
        self._rows[answer] = logits.copy()
        return len(self._rows) == len(self.live)

    def start_over(self) -> None:
        """Forgets logits of other weights."""
        self._rows.clear()

    def advance(self, scheduler: Scheduler) -> bool:
        """Lets the best beams go on; whether the search is over. Raises AthanorError for logits that are no numbers."""
        if not all(np.isfinite(row.max()) for row in self._rows.values()):
            raise AthanorError(*NO_NUMBERS)
        sampling, answer = self.sampling, self.live[0].answer
        length = answer.length + 1 - self._before
        ends = answer.stop_ids if answer.said + 1 >= sampling.min_tokens else frozenset[int]()
        is_last = answer.length + 1 >= answer.longest
        going: list[Beam] = []
        for place, beam in enumerate(self._continuations()):
            assert beam.said is not None
            if not is_last and beam.said.token not in ends:
                going.append(beam)
            elif place < sampling.beams:
                self.finished.append(Hypothesis(beam.score / length**sampling.length_penalty, beam.said))
        self.finished = sorted(self.finished, key=lambda one: -one.score)[: sampling.beams]
        self._rows.clear()
        going = going[: sampling.beams]
        if not going or self._is_over(going[0].score, length):
            return True
        self._go_on(going, scheduler)
        return False

    def _continuations(self) -> Iterator[Beam]:
        """The best, in order; their answers are those that they come from."""
        rows, scores, after = [], [], []
        for beam in self.live:
            everything = log_softmax(self._rows[beam.answer])
            adjusted, answer = everything, beam.answer
            if answer.adjustment.acts(answer.said):
                adjusted = everything.copy()
                answer.adjustment.apply(adjusted, answer.said)
            rows.append(everything)
            scores.append(adjusted + np.float32(beam.score))
            after.append(likeliest(everything, self.sampling.logprobs))
        values, places = largest(np.concatenate(scores), self._width)
        vocab_size = len(rows[0])
        for score, place in zip(values.tolist(), places.tolist(), strict=True):
            if score > -np.inf:
                number, token = divmod(place, vocab_size)
                said = Said(token, float(rows[number][token]), after[number], self.live[number].said)
                yield Beam(self.live[number].answer, score, said)

    def _is_over(self, best: float, length: int) -> bool:
        """Whether no beam is expected to become better than what has ended. best: score of a beam that goes on."""
        sampling = self.sampling
        if len(self.finished) < sampling.beams:
            return False
        if sampling.early_stopping is True:
            return True
        if sampling.early_stopping == "never" and sampling.length_penalty > 0:
            length = self.live[0].answer.longest - self._before
        return best / length**sampling.length_penalty <= self.finished[-1].score

    def _go_on(self, going: list[Beam], scheduler: Scheduler) -> None:
        """The first continuation of a beam keeps its answer, others get one that is free."""
        children: defaultdict[Answer, list[Beam]] = defaultdict(list)
        for beam in going:
            children[beam.answer].append(beam)
        for beam in self.live:
            if beam.answer not in children:
                scheduler.remove(beam.answer)
                self._free.append(beam.answer)
        holders: dict[Beam, Answer] = {}
        for answer, some in children.items():
            holders[some[0]] = answer
            for beam in some[1:]:
                holders[beam] = self._free.pop()
                scheduler.branch(answer, holders[beam])
        self.live = [Beam(holders[beam], beam.score, beam.said) for beam in going]
        for beam in self.live:
            assert beam.said is not None
            beam.answer.push(beam.said.token)
