"""What the training loop reads: a source of batches, and the journal of what the clock decided."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from athanor.base.files import read_json
from athanor.base.run import damaged
from athanor.training.batches import Batch
from athanor.training.schedules import Turn


class SourceEnded(Exception):  # noqa: N818, an end, not an error
    """Raised by a source that has nothing left to learn from; training ends there, and says why."""


class Source(Protocol):
    """Where batches come from. `next` may raise SourceEnded. `position` is JSON, and all that is needed to continue
    from there.
    """

    def next(self) -> Batch: ...

    def get_position(self) -> dict[str, Any]: ...

    def set_position(self, position: Mapping[str, Any]) -> None: ...


@runtime_checkable
class Follower(Protocol):
    """A source that changes as training goes on."""

    def follow(self, left: float, tokens: int) -> None:
        """left: of the learning rate's fall, from 1 to nearly 0, at the step whose batch is next. tokens: so far."""
        ...


def read_journal(path: Path) -> list[Turn]:
    """The turns written there; none where there is no file."""
    if not path.exists():
        return []
    found = read_json(path)
    turns = found.get("turns") if isinstance(found, dict) else None
    if not isinstance(turns, list) or not all(_is_turn(turn) for turn in turns):
        raise damaged(path)
    return [Turn(*turn) for turn in turns]


def _is_turn(turn: Any) -> bool:
    pair = isinstance(turn, list) and len(turn) == 2 and all(type(step) is int for step in turn)
    return pair and 0 <= turn[0] <= turn[1]
