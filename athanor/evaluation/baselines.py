"""What the base model has to beat: Kneser-Ney on the very tokens it consumed, and on all the text there is."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from athanor.classic.kneser_ney import KneserNey
from athanor.evaluation.bits_per_byte import HeldOut
from athanor.training.batches import DocumentPieces, PackedBatches
from athanor.training.growth import GrowingBatches
from athanor.training.streaming import StreamedPieces

_MOST = 20_000_000


def consumed(batches: PackedBatches | GrowingBatches, steps: int, most: int = _MOST) -> tuple[np.ndarray, np.ndarray]:
    """The distinct text of the first `steps` batches, as (tokens, offsets); neighbouring pieces of a document are
    joined.

    batches: made as for training, standing at its beginning, over `DocumentPieces` or a stream of them. most: no more
    than about so many tokens, since a model of them takes a hundred bytes for each.
    """
    pieces = batches.sequences
    if not isinstance(pieces, DocumentPieces | StreamedPieces):
        raise TypeError("only documents have a text that an n-gram model can be given")
    length = pieces.length if isinstance(pieces, StreamedPieces) else pieces.lengths.__getitem__
    members, total = list[int](), 0
    while steps > 0 and total < most:
        drawn = [i for row in batches.next_rows() for i in row]
        members += drawn
        total += sum(int(length(i)) for i in drawn)
        steps -= 1
    if isinstance(pieces, StreamedPieces):
        return _text(pieces.parts(members))
    return _text([(pieces, np.unique(np.array(members, dtype=np.int64)))])


def _text(parts: Iterable[tuple[DocumentPieces, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """The pieces with these indices, ascending in each part."""
    texts: list[np.ndarray] = []
    borders, total = [], 0
    for pieces, indices in parts:
        continues = ~pieces.begins_document[indices] & np.isin(indices - 1, indices)
        texts += [
            pieces.tokens[s : s + n]
            for s, n in zip(pieces.starts[indices].tolist(), pieces.lengths[indices].tolist(), strict=True)
        ]
        ends = total + np.cumsum(pieces.lengths[indices])
        borders.append((ends - pieces.lengths[indices])[~continues])
        total = int(ends[-1])
    return np.concatenate(texts), np.concatenate([*borders, [total]])


def kneser_ney_bits_per_byte(tokens: np.ndarray, offsets: np.ndarray, held_out: HeldOut, vocab_size: int) -> float:
    """A modified Kneser-Ney 5-gram fitted to (tokens, offsets), on the same held-out documents as the models."""
    model = KneserNey.fit((tokens, offsets), vocab_size, order=5, start_id=held_out.end_of_text_id)
    return model.bits_per_byte(
        held_out.tokens, held_out.offsets, int(held_out.sizes.sum()), exclude=(held_out.end_of_text_id,)
    )
