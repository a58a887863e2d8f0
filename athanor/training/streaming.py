"""Batches from a streamed corpus: a few shards at a time, in an order that is a function of the seed.

A pass reads the documents of `TOGETHER` shards, mixed as `PackedBatches` mixes a whole corpus; while it lasts the next
shards are fetched. Passes over all shards make an epoch. A position is a pass and a place in it, so training resumes
exactly, and nothing of what was read before is needed for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np

from athanor.base.errors import DataError
from athanor.base.progress import say
from athanor.base.randomness import generator
from athanor.base.transfers import TransferError
from athanor.corpus.stream_cache import TOGETHER, Ahead, TextStream
from athanor.training.batches import DocumentPieces, PackedBatches, Sequences

_KEPT = 2  # passes: a batch may end in another one than it begins in
_SHIFT = 40  # a member of a row is pass × 2^40 + index of the piece in it


@dataclass(frozen=True)
class _Pass:
    """The pieces of some shards. firsts: (shards,) the number of the first piece of each; lengths: of all pieces."""

    shards: list[DocumentPieces]
    firsts: np.ndarray
    lengths: np.ndarray

    @classmethod
    def of(cls, shards: list[DocumentPieces]) -> _Pass:
        counts = np.array([len(shard.lengths) for shard in shards])
        return cls(shards, np.cumsum(counts) - counts, np.concatenate([shard.lengths for shard in shards]))

    def place(self, index: int) -> tuple[int, int]:
        """The shard of a piece, and its index there."""
        shard = int(np.searchsorted(self.firsts, index, side="right")) - 1
        return shard, index - int(self.firsts[shard])


class StreamedPieces:
    """The pieces of a stream's documents, of at most `length` places, pass by pass."""

    def __init__(self, text: TextStream, length: int, seed: int) -> None:
        self.text, self.places, self.seed = text, length, seed
        self._passes: dict[int, _Pass] = {}
        self._next: tuple[int, Ahead[_Pass]] | None = None

    def at(self, number: int) -> _Pass:
        """The pieces of a pass; the next pass is fetched meanwhile."""
        if number not in self._passes:
            self._passes[number] = self._made_ahead(number) or self._open(number)
            for old in list(self._passes)[:-_KEPT]:
                del self._passes[old]
            self._next = number + 1, Ahead(lambda: self._open(number + 1, besides=self._shards(number)))
        return self._passes[number]

    def _made_ahead(self, number: int) -> _Pass | None:
        if self._next is None or self._next[0] != number:
            return None
        try:
            return self._next[1].result()
        except TransferError as error:  # the connection may be back by now
            say(f"{error.message} It is tried again.")
            return None

    def pair(self, member: int) -> tuple[np.ndarray, np.ndarray]:
        shard, index = self._find(member)
        return shard.pair(index)

    def length(self, member: int) -> int:
        shard, index = self._find(member)
        return int(shard.lengths[index])

    def parts(self, members: Iterable[int]) -> Iterable[tuple[DocumentPieces, np.ndarray]]:
        """The pieces that these members of rows are, each once, shard by shard."""
        found: dict[tuple[int, int], set[int]] = {}
        for member in members:
            number, index = divmod(member, 1 << _SHIFT)
            shard, place = self.at(number).place(index)
            found.setdefault((number, shard), set()).add(place)
        seen: dict[int, set[int]] = {}  # an epoch later a shard comes again
        for (number, shard), places in found.items():
            name = self._shards(number)[shard]
            new = np.array(sorted(places - seen.get(name, set())), dtype=np.int64)
            seen.setdefault(name, set()).update(places)
            if len(new):
                yield self.at(number).shards[shard], new

    def _find(self, member: int) -> tuple[DocumentPieces, int]:
        number, index = divmod(member, 1 << _SHIFT)
        found = self.at(number)
        shard, place = found.place(index)
        return found.shards[shard], place

    def _shards(self, number: int) -> Sequence[int]:
        """The shards of a pass."""
        n_shards = len(self.text.index.shards)
        epoch, part = divmod(number, -(-n_shards // TOGETHER))
        order = generator(self.seed, "shards", epoch).permutation(n_shards)
        return cast(list[int], order[part * TOGETHER : (part + 1) * TOGETHER].tolist())

    def _open(self, number: int, besides: Sequence[int] = ()) -> _Pass:
        end = self.text.index.end_of_text_id
        arrays = self.text.open(self._shards(number), besides)
        return _Pass.of([DocumentPieces(tokens, offsets, self.places, end) for tokens, offsets in arrays])


class StreamedBatches(PackedBatches):
    """An endless stream of batches of `rows` rows of `length` places; an epoch of its position is a pass."""

    def __init__(
        self, text: TextStream, rows: int, length: int, seed: int, *, pad_id: int, block_tokens: int = 1 << 21
    ) -> None:
        self.pieces = StreamedPieces(text, length, seed)
        super().__init__(cast(Sequences, self.pieces), rows, length, seed, pad_id=pad_id, block_tokens=block_tokens)

    def _check(self) -> None:
        if not self.pieces.text.n_tokens:
            raise DataError("There is nothing to train on: the streamed corpus is empty.")

    def _lengths(self, epoch: int) -> np.ndarray:
        return self.pieces.at(epoch).lengths

    def _next_row(self) -> list[int]:
        members = super()._next_row()
        first = self.position.epoch << _SHIFT
        return [first + index for index in members]
