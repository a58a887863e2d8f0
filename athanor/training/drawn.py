"""Batches whose sequences are drawn anew each epoch: masks, spans and splits are functions of (seed, epoch, sequence).

Packing, order and position are those of `PackedBatches`, so a batch remains a function of the seed and of a small
position, and training resumes exactly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import numpy as np

from athanor.base.errors import TokenizerError
from athanor.tokenizer import Tokenizer, control
from athanor.training.batches import IGNORED, Batch, PackedBatches, Sequences, lay_out

Drawn = Mapping[str, np.ndarray]


class Examples(Protocol):
    """What can be drawn and packed. `lengths` (n,) int: the most places that each sequence takes."""

    lengths: np.ndarray

    def draw(self, index: int, epoch: int) -> Drawn:
        """The columns of one sequence, as it is in this epoch."""
        ...

    def collate(self, drawn: Sequence[Drawn], rows: Sequence[Sequence[int]], length: int) -> Batch:
        """A batch of rows of at most `length` places; a row names its sequences by their number in `drawn`."""
        ...


class DrawnBatches(PackedBatches):
    """An endless stream of batches of `rows` rows; a member of a row is epoch × sequences + index."""

    def __init__(self, examples: Examples, rows: int, length: int, seed: int, block_tokens: int = 1 << 21) -> None:
        super().__init__(cast(Sequences, examples), rows, length, seed, pad_id=0, block_tokens=block_tokens)
        self.examples = examples

    def _next_row(self) -> list[int]:
        members = super()._next_row()
        first = self.position.epoch * len(self.examples.lengths)
        return [first + index for index in members]

    def assemble(self, rows: list[list[int]]) -> Batch:
        drawn: list[Drawn] = []
        numbers = []
        for row in rows:
            numbers.append(range(len(drawn), len(drawn) + len(row)))
            for member in row:
                epoch, index = divmod(member, len(self.examples.lengths))
                drawn.append(self.examples.draw(index, epoch))
        return self.examples.collate(drawn, numbers, self.length)


def plain_batch(drawn: Sequence[Drawn], rows: Sequence[Sequence[int]], length: int, end: int) -> Batch:
    """Of the columns tokens and targets. end: stands where nothing else does."""
    return Batch(**lay_out(rows, length, lambda number: drawn[number], {"tokens": end, "targets": IGNORED}))


class Pieces:
    """Documents without their end-of-text ids, cut into pieces of at most `length` tokens.

    tokens, offsets: as in shards. Pieces of fewer than `least` tokens are left out.
    """

    def __init__(self, tokens: np.ndarray, offsets: np.ndarray, length: int, least: int = 1) -> None:
        self.tokens = tokens
        sizes = np.diff(offsets) - 1
        counts = -(-sizes // length)
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        starts = np.repeat(offsets[:-1], counts) + within * length
        lengths = np.minimum(length, np.repeat(offsets[1:] - 1, counts) - starts)
        kept = lengths >= least
        self.starts, self.lengths = starts[kept].astype(np.int64), lengths[kept].astype(np.int64)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> np.ndarray:
        """(lengths[index],) int64."""
        start = self.starts[index]
        return self.tokens[start : start + self.lengths[index]].astype(np.int64)


@dataclass(frozen=True)
class SpecialTokens:
    """The ids that objectives put into texts. ordinary: (n,) ids that a random replacement is drawn from. modes: of a
    mixture of denoisers: regular, sequential, extreme.
    """

    end: int
    mask: int
    classify: int
    separate: int
    prefix: int
    suffix: int
    middle: int
    modes: tuple[int, int, int]
    sentinels: tuple[int, ...]
    ordinary: np.ndarray

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> SpecialTokens:
        """Raises TokenizerError for a tokenizer that has no ids set aside for them."""
        ids = tokenizer.control
        wanted = (control.CLASSIFY, control.SEPARATE, control.REGULAR, control.SEQUENTIAL, control.EXTREME)
        sentinels = tuple(ids[name] for name in control.SENTINELS if name in ids)
        if missing := [name for name in wanted if name not in ids] or ([] if sentinels else [control.SENTINELS[0]]):
            raise TokenizerError(
                f"The tokenizer has no control token {missing[0]}, which this objective needs.",
                f"Train it with the {control.CONTROL_TOKENS} usual ones.",
            )
        classify, separate, *modes = (ids[name] for name in wanted)
        return cls(
            tokenizer.end_of_text_id,
            ids[control.MASK],
            classify,
            separate,
            ids[control.FIM_PREFIX],
            ids[control.FIM_SUFFIX],
            ids[control.FIM_MIDDLE],
            (modes[0], modes[1], modes[2]),
            sentinels,
            np.array([i for i in range(tokenizer.vocab_size) if i not in tokenizer.control_ids]),
        )
