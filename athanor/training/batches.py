"""From token sequences to packed batches: every row is filled with whole sequences that cannot see one another.

Sequences are taken in a shuffled order, block by block; each block is packed best-fit-decreasing (about 99 % full rows,
nothing cropped away, nothing padded but the last gaps) and its rows are shuffled. A batch is a function of the seed and
of a small position, which is all that a checkpoint has to keep.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol, Self

import numpy as np
import torch
from torch import Tensor

from athanor.base.errors import DataError
from athanor.base.randomness import generator

IGNORED = -100  # a target without a loss, torch's convention


@dataclass(frozen=True)
class Batch:
    """All (rows, time) int64: inputs, next-token targets (or IGNORED), the document each place belongs to (-1 for
    padding), its place in it. metrics: what its source wants logged beside the loss. counts: what further terms of a
    loss are averaged over, of the whole batch that a micro-batch is a part of.
    """

    tokens: Tensor
    targets: Tensor
    document_ids: Tensor
    positions: Tensor
    metrics: Mapping[str, float] = field(default_factory=dict, kw_only=True)
    counts: Mapping[str, int] = field(default_factory=dict, kw_only=True)

    @property
    def n_targets(self) -> int:
        return int((self.targets != IGNORED).sum())

    @property
    def n_places(self) -> int:
        """Places that go through the model, padding and prompts included."""
        return self.tokens.numel()

    @property
    def columns(self) -> dict[str, Tensor]:
        """The tensors by name."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}

    def to(self, device: torch.device) -> Self:
        """The batch on a device; itself where it is there. A copy to a GPU does not wait for what computes there."""
        if self.tokens.device == device:
            return self
        pinned = device.type == "cuda" and self.tokens.device.type == "cpu"
        columns = {
            name: (column.contiguous().pin_memory() if pinned else column).to(device, non_blocking=pinned)
            for name, column in self.columns.items()
        }
        return type(self)(**columns, metrics=self.metrics, counts=self.counts)

    def without_targets(self) -> Self:
        """The same for a model, and nothing to learn from."""
        return replace(self, targets=torch.full_like(self.targets, IGNORED))

    def split(self, rows: int) -> list[Self]:
        """Micro-batches of at most `rows` rows, without the metrics and with the counts of the whole."""
        parts = {name: column.split(rows) for name, column in self.columns.items()}
        return [
            type(self)(**dict(zip(parts, part, strict=True)), counts=self.counts)
            for part in zip(*parts.values(), strict=True)
        ]


def rows_at(states: Tensor, chosen: Tensor) -> Tensor:
    """states (rows, time, size), chosen (rows, time) bool → (n, size). As `states[chosen]`, whose gradient torch would
    put back number by number instead of row by row.
    """
    return states.flatten(0, 1).index_select(0, chosen.flatten().nonzero().squeeze(1))


def lay_out(
    rows: Sequence[Sequence[int]],
    length: int,
    sequence: Callable[[int], Mapping[str, np.ndarray]],
    empty: Mapping[str, int | float],
) -> dict[str, Any]:
    """The columns of a batch, each a tensor (rows, length): row by row the sequences named there, one after the other.

    sequence: index → equally long parts of every column. empty: the columns and what stands where nothing else does.
    `document_ids` and `positions` are added.
    """
    shape = (len(rows), length)
    columns = {
        name: np.full(shape, value, dtype=np.int64 if isinstance(value, int) else np.float32)
        for name, value in empty.items()
    }
    document_ids, positions = np.full(shape, -1, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    for row, members in enumerate(rows):
        place = 0
        for document, index in enumerate(members):
            parts = sequence(index)
            size = len(next(iter(parts.values())))
            span = slice(place, place + size)
            for name, values in parts.items():
                columns[name][row, span] = values
            document_ids[row, span], positions[row, span] = document, np.arange(size)
            place = span.stop
    columns |= {"document_ids": document_ids, "positions": positions}
    return {name: torch.from_numpy(values) for name, values in columns.items()}


class Sequences(Protocol):
    """What can be packed. `lengths` (n,) int: number of (input, target) pairs of each sequence."""

    lengths: np.ndarray

    def pair(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets of one sequence, each (lengths[index],) int64; targets may be IGNORED."""
        ...


class DocumentPieces:
    """Documents as next-token sequences of at most `length` places; each token of each document is a target exactly
    once.

    tokens: (n,) the shards' ids, every document closed by `end_of_text_id`; offsets: (documents + 1,). A document's
    first piece starts from `end_of_text_id`, a later piece from the token before it.
    """

    def __init__(self, tokens: np.ndarray, offsets: np.ndarray, length: int, end_of_text_id: int) -> None:
        self.tokens, self.end_of_text_id = tokens, end_of_text_id
        sizes = np.diff(offsets)
        counts = -(-sizes // length)
        first = np.repeat(np.cumsum(counts) - counts, counts)
        within = np.arange(counts.sum()) - first
        starts = np.repeat(offsets[:-1], counts) + within * length
        self.starts = starts.astype(np.int64)
        self.begins_document = within == 0
        self.lengths = np.minimum(length, np.repeat(offsets[1:], counts) - starts).astype(np.int64)

    def pair(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        start, length = self.starts[index], self.lengths[index]
        targets = self.tokens[start : start + length].astype(np.int64)
        inputs = np.empty_like(targets)
        inputs[0] = self.end_of_text_id if self.begins_document[index] else self.tokens[start - 1]
        inputs[1:] = targets[:-1]
        return inputs, targets


class MaskedSequences:
    """Sequences with a loss mask, e.g. conversations: ids and mask of equal length; only masked ids are targets."""

    def __init__(self, sequences: list[tuple[np.ndarray, np.ndarray]]) -> None:
        self.sequences = sequences
        self.lengths = np.array([len(ids) - 1 for ids, _ in sequences], dtype=np.int64)

    def pair(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        ids, mask = self.sequences[index]
        return ids[:-1].astype(np.int64), np.where(mask[1:], ids[1:], IGNORED).astype(np.int64)


def pack(lengths: np.ndarray, capacity: int) -> list[list[int]]:
    """Best-fit-decreasing: rows of indices whose lengths add up to at most `capacity`.

    A bit set of the remaining capacities in use finds the tightest row in constant time.
    """
    rows: list[list[int]] = []
    open_rows: list[list[int]] = [[] for _ in range(capacity + 1)]  # by remaining capacity
    in_use = 0
    for index in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[index])
        fitting = in_use >> length
        if fitting:
            space = length + (fitting & -fitting).bit_length() - 1
            row = open_rows[space].pop()
            if not open_rows[space]:
                in_use &= ~(1 << space)
        else:
            space, row = capacity, len(rows)
            rows.append([])
        rows[row].append(index)
        rest = space - length
        if rest:
            open_rows[rest].append(row)
            in_use |= 1 << rest
    return rows


@dataclass
class Position:
    """Where a `PackedBatches` stands; all that resuming needs."""

    epoch: int = 0
    block: int = 0
    row: int = 0


class PackedBatches:
    """An endless stream of batches of `rows` rows of `length` places.

    block_tokens bounds what is packed at a time, and so memory, on a corpus of any size.
    """

    def __init__(
        self, sequences: Sequences, rows: int, length: int, seed: int, *, pad_id: int, block_tokens: int = 1 << 21
    ) -> None:
        self.sequences, self.rows, self.length, self.seed, self.pad_id = sequences, rows, length, seed, pad_id
        self.block_tokens = block_tokens
        self.position = Position()
        self._block: tuple[tuple[int, int], list[list[int]]] | None = None
        self._order: tuple[int, np.ndarray, np.ndarray] | None = None
        self._check()

    def _check(self) -> None:
        if len(self.sequences.lengths) == 0:
            raise DataError(
                "There is nothing to learn or to measure: no sequence is left.",
                "Give more text, loosen the filters, or hold out more of it (corpus.held_out_share).",
            )
        if (longest := self.sequences.lengths.max()) > self.length:
            raise DataError(f"A sequence of {longest} tokens does not fit into a row of {self.length}.")

    def _lengths(self, epoch: int) -> np.ndarray:
        """Of the sequences of an epoch."""
        return self.sequences.lengths

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The shuffled sequences of an epoch and the bounds of its blocks."""
        if self._order is None or self._order[0] != epoch:
            lengths = self._lengths(epoch)
            order = generator(self.seed, "order", epoch).permutation(len(lengths))
            totals = np.cumsum(lengths[order])
            n_blocks = max(1, round(totals[-1] / self.block_tokens))
            cuts = np.searchsorted(totals, totals[-1] * np.arange(1, n_blocks) / n_blocks)
            self._order = epoch, order, np.concatenate([[0], cuts, [len(order)]])
        return self._order[1], self._order[2]

    def _rows_of(self, epoch: int, block: int) -> list[list[int]]:
        if self._block is None or self._block[0] != (epoch, block):
            order, bounds = self._epoch(epoch)
            members = order[bounds[block] : bounds[block + 1]]
            packed = pack(self._lengths(epoch)[members], self.length)
            shuffled = generator(self.seed, "rows", epoch, block).permutation(len(packed))
            self._block = (epoch, block), [members[packed[row]].tolist() for row in shuffled]
        return self._block[1]

    def _next_row(self) -> list[int]:
        while True:
            position = self.position
            rows = self._rows_of(position.epoch, position.block)
            if position.row < len(rows):
                position.row += 1
                return rows[position.row - 1]
            position.row, position.block = 0, position.block + 1
            if position.block == len(self._epoch(position.epoch)[1]) - 1:
                position.epoch, position.block = position.epoch + 1, 0

    def next_rows(self, rows: int | None = None) -> list[list[int]]:
        """The sequence indices of the next batch, row by row; advances the position. rows: instead of the usual."""
        return [self._next_row() for _ in range(self.rows if rows is None else rows)]

    def assemble(self, rows: list[list[int]]) -> Batch:
        def sequence(index: int) -> dict[str, np.ndarray]:
            inputs, targets = self.sequences.pair(index)
            return {"tokens": inputs, "targets": targets}

        columns = lay_out(rows, self.length, sequence, {"tokens": self.pad_id, "targets": IGNORED})
        return Batch(columns["tokens"], columns["targets"], columns["document_ids"], columns["positions"])

    def next(self) -> Batch:
        return self.assemble(self.next_rows())

    def get_position(self) -> dict[str, int]:
        return asdict(self.position)

    def set_position(self, position: Mapping[str, int]) -> None:
        self.position = Position(**position)
