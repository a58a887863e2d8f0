"""How the learning rate, and if wanted the batch, change over a run.

Warm-up, stable, decay: the rate's factor is a function of the step and of the turns taken so far. A turn says from
which step on the rate falls, and by which step it has arrived. It need not be known in advance (Hu et al. 2024,
MiniCPM), which is what lets a run end on time: the loop turns when the clock says so, writes that down first, and may
turn again, sooner to its end, on a machine that slows down. Linear and cosine schedules fall after the warm-up at once,
and so need to know the number of steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

ScheduleKind = Literal["wsd", "cosine", "linear"]


class Turn(NamedTuple):
    """From `step` on the rate falls, to reach its final value at step `end`."""

    step: int
    end: int


@dataclass(frozen=True)
class Schedule:
    """warmup: steps of linear rise. final: the factor that the decay ends at. kind: "wsd" stays at the peak until a
    turn and then falls in a straight line; "linear" and "cosine" fall, in that shape, right after the warm-up.
    """

    warmup: int = 10
    final: float = 0.0
    kind: ScheduleKind = "wsd"

    def turn_of(self, steps: int, decay_share: float) -> Turn:
        """The turn of a run whose number of steps is known. decay_share: of the steps, for "wsd"."""
        if self.kind == "wsd":
            return Turn(steps - round(decay_share * steps), steps)
        return Turn(min(self.warmup, steps), steps)

    def factor(self, step: int, turns: Sequence[Turn]) -> float:
        """The factor of update `step` (1, 2, …)."""
        level = 1.0
        for number, turn in enumerate(turns):
            until = min(step, turns[number + 1].step) if number + 1 < len(turns) else step
            # The last update is at one part above the final value, not at it: a step of size zero would be wasted.
            done, whole = max(0, until - turn.step), turn.end - turn.step + 1
            if self.kind == "cosine":
                level += (self.final - level) * (1 - math.cos(math.pi * done / whole)) / 2
            else:
                level += (self.final - level) * done / whole
        return min(1.0, step / max(1, self.warmup)) * level

    def left(self, step: int, turns: Sequence[Turn]) -> float:
        """How much of the fall is left at update `step`: 1 before it, and nearly 0 at the last."""
        return replace(self, warmup=1, final=0.0).factor(step, turns)


@dataclass(frozen=True)
class Growth:
    """A size that doubles in equally long stages from `first` to `last`, which it has from `share` of the run on."""

    first: int
    last: int
    share: float = 0.5

    def __post_init__(self) -> None:
        doublings = self.last / self.first if self.first > 0 else 0.0
        if doublings < 1 or not math.log2(doublings).is_integer():
            raise ValueError(f"{self.last} is not {self.first} doubled a number of times")
        if not 0 < self.share <= 1:
            raise ValueError(f"a share of {self.share} is not above 0 and at most 1")

    @property
    def doublings(self) -> int:
        return round(math.log2(self.last / self.first))

    @property
    def stretch(self) -> float:
        """How many times as many parts a run is read in as with `last` all along."""
        early = [2.0**above for above in range(1, self.doublings + 1)]
        return 1 - self.share + self.share * sum(early) / len(early) if early else 1.0

    def at(self, progress: float) -> int:
        """progress: share of the run that is done, from 0 on."""
        if progress >= self.share:
            return self.last
        return self.first << int(progress / self.share * self.doublings)
