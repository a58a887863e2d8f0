"""From a step's logits to tokens: each answer's settings, constraint and noise applied to its rows, all rows together.

An answer has a row for the token after what it has said, and one more for each drafted token, drawn as if the drafts
before it had been said: that they were not is found out by comparing, afterwards.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from athanor.base.errors import AthanorError
from athanor.engine.constraint import Guide
from athanor.engine.logits import NO_NUMBERS, Drawn, chosen_logprobs, draw
from athanor.engine.scheduler import Answer

NOTHING = -1


class Place(NamedTuple):
    """drafted: the tokens between what the answer has said and this one. guide: the answer's, after these. forced: the
    only token that its constraint allows here, if it is known.
    """

    answer: Answer
    drafted: tuple[int, ...] = ()
    guide: Guide | None = None
    forced: int | None = None

    @property
    def said(self) -> int:
        return self.answer.said + len(self.drafted)

    @property
    def is_adjusted(self) -> bool:
        return self.forced is None and (self.guide is not None or self.answer.adjustment.acts(self.said))

    def adjust(self, row: np.ndarray) -> bool:
        """Changes (vocabulary,) logits in place; whether they leave anything to be said."""
        self.answer.adjustment.apply(row, self.said, self.drafted)
        if self.guide is not None:
            allowed = self.guide.allowed()
            allowed[list(self.answer.stop_ids)] = self.guide.accepts
            np.copyto(row, -np.inf, where=~allowed)
        return bool(row.max() > -np.inf)


def places_of(answer: Answer, guess: Sequence[int] = (), most: int = 0) -> list[Place]:
    """The place after what was said, and one after each of at most `most` drafted tokens: of the guess, as far as the
    constraint goes along, or forced ones whose log-probabilities are wanted.
    """
    guide = answer.guide
    if guide is None:
        return [Place(answer, (*guess[:n],)) for n in range(min(most, len(guess)) + 1)]
    forced, rest, drafted = answer.forced, deque(guess), tuple[int, ...]()
    places = [Place(answer, (), guide, forced[0] if forced else None)]
    while len(drafted) < most and (rest or (forced and answer.request.sampling.logprobs)):
        token = forced[0] if forced else rest[0]
        if rest and rest.popleft() != token:
            rest.clear()
            continue
        guide = guide.copy()
        if token in answer.stop_ids or not guide.takes(token):
            break
        forced = answer.forced_after(token, guide, forced)
        if guide.is_complete:
            break
        drafted = (*drafted, token)
        places.append(Place(answer, drafted, guide, forced[0] if forced else None))
    return places


def draw_places(
    places: Sequence[Place], logits: np.ndarray
) -> tuple[list[int], list[float], dict[int, AthanorError | None]]:
    """The token of each place, from its row of (places, vocabulary) logits, or NOTHING where the settings leave none;
    its log-probability in that row; and by number the places without a token, with what their constraint raised.
    """
    wanted, silent = logits, dict[int, AthanorError | None]()
    adjusted = [(row, place) for row, place in enumerate(places) if place.is_adjusted]
    if adjusted:
        wanted = logits.copy()
        for row, place in adjusted:
            try:
                if not place.adjust(wanted[row]):
                    silent[row] = None
            except AthanorError as error:  # of its constraint
                silent[row] = error
            if row in silent:
                wanted[row] = 0.0
    drawn = _draw(places, wanted)
    forced = [row for row, place in enumerate(places) if place.forced is not None]
    for row in forced:
        drawn.tokens[row] = places[row].forced
    if other := [*(row for row, _ in adjusted), *forced]:
        drawn.logprobs[other] = chosen_logprobs(logits[other], drawn.tokens[other])
    # A row without numbers gives no log-probability; what is silent was not drawn from its own row.
    for row in {*np.flatnonzero(np.isnan(drawn.logprobs)).tolist(), *silent}:
        if not np.isfinite(logits[row].max()):
            silent[row] = AthanorError(*NO_NUMBERS)
    drawn.tokens[[*silent]] = NOTHING
    return drawn.tokens.tolist(), drawn.logprobs.tolist(), silent


def _draw(places: Sequence[Place], logits: np.ndarray) -> Drawn:
    """One token a row; rows with the same filters together."""
    keys = np.array([place.answer.key for place in places], dtype=np.uint64)
    said = np.array([place.said for place in places])
    kinds: defaultdict[tuple[float, ...], list[int]] = defaultdict(list)
    for row, place in enumerate(places):
        kinds[place.answer.filters].append(row)
    if len(kinds) == 1:
        return draw(logits, places[0].answer.request.sampling, keys, said)
    found = Drawn(np.empty(len(places), dtype=np.int64), np.empty(len(places), dtype=np.float32))
    for rows in kinds.values():
        sampling = places[rows[0]].answer.request.sampling
        found.tokens[rows], found.logprobs[rows] = draw(logits[rows], sampling, keys[rows], said[rows])
    return found
