"""Warm-up, stable, decay: the learning rate's factor as a function of the step and of the turns taken so far.

A turn says from which step on the rate falls, and by which step it has arrived. It need not be known in advance (Hu et
al. 2024, MiniCPM), which is what lets a run end on time: the loop turns when the clock says so, writes that down first,
and may turn again, sooner to its end, on a machine that slows down.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple


class Turn(NamedTuple):
    """From `step` on the rate falls in a straight line, to reach its final value at step `end`."""

    step: int
    end: int


@dataclass(frozen=True)
class Schedule:
    """warmup: steps of linear rise. final: the factor that the decay ends at."""

    warmup: int = 10
    final: float = 0.0

    def factor(self, step: int, turns: Sequence[Turn]) -> float:
        """The factor of update `step` (1, 2, …)."""
        level = 1.0
        for number, turn in enumerate(turns):
            until = min(step, turns[number + 1].step) if number + 1 < len(turns) else step
            # The last update is at one part above the final value, not at it: a step of size zero would be wasted.
            level += (self.final - level) * max(0, until - turn.step) / (turn.end - turn.step + 1)
        return min(1.0, step / max(1, self.warmup)) * level
