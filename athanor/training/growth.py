"""Batches that grow: fewer rows and shorter ones at first, when updates are worth more than precise gradients and long
context is not yet used (batch-size and sequence-length warm-up; Li et al. 2022, arXiv 2108.06084).

A shorter row is a part of a packed one: the row is cut into equal parts that cannot see each other. So the text is read
in the same order whatever the sizes are, and the position of the source says everything but how far the growth is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from athanor.training.batches import Batch, PackedBatches, Sequences
from athanor.training.schedules import Growth


class GrowingBatches:
    """The batches of `source` with the sizes that `rows` and `length` say (rows: those of `source`, before they are
    cut). expected_places: what the whole run is expected to read, which progress is measured by.
    """

    def __init__(
        self, source: PackedBatches, expected_places: int, rows: Growth | None = None, length: Growth | None = None
    ) -> None:
        self.source, self.expected_places = source, max(1, expected_places)
        self.rows = rows or Growth(source.rows, source.rows)
        self.length = length or Growth(source.length, source.length)
        if self.length.last != source.length:
            raise ValueError(f"rows of {source.length} places cannot grow to {self.length.last}")
        self.places = 0

    @property
    def sequences(self) -> Sequences:
        return self.source.sequences

    @property
    def _progress(self) -> float:
        return self.places / self.expected_places

    def next_rows(self) -> list[list[int]]:
        """The sequence indices of the next batch, before its rows are cut; advances the position."""
        rows = self.source.next_rows(self.rows.at(self._progress))
        self.places += len(rows) * self.source.length
        return rows

    def next(self) -> Batch:
        length = self.length.at(self._progress)
        return cut(self.source.assemble(self.next_rows()), length)

    def get_position(self) -> dict[str, Any]:
        return {"places": self.places, "source": self.source.get_position()}

    def set_position(self, position: Mapping[str, Any]) -> None:
        self.places = int(position["places"])
        self.source.set_position(position["source"])


def cut(batch: Batch, length: int) -> Batch:
    """The same places in rows of `length`, which divides the batch's own; places keep their positions."""
    columns: dict[str, Any] = {
        name: column.reshape(-1, length, *column.shape[2:]) for name, column in batch.columns.items()
    }
    return replace(batch, **columns)
