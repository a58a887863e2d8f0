"""What the base model has to beat: Kneser-Ney on the very tokens it consumed, and on all the text there is."""

from __future__ import annotations

import numpy as np

from athanor.classic.kneser_ney import KneserNey
from athanor.evaluation.bits_per_byte import HeldOut
from athanor.training.batches import DocumentPieces, PackedBatches
from athanor.training.growth import GrowingBatches


def consumed(batches: PackedBatches | GrowingBatches, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """The distinct text of the first `steps` batches, as (tokens, offsets); neighbouring pieces of a document are
    joined.

    batches: made as for training, standing at its beginning, over `DocumentPieces`.
    """
    pieces = batches.sequences
    if not isinstance(pieces, DocumentPieces):
        raise TypeError("only documents have a text that an n-gram model can be given")
    indices = np.unique(np.array([i for _ in range(steps) for row in batches.next_rows() for i in row], dtype=np.int64))
    continues = ~pieces.begins_document[indices] & np.isin(indices - 1, indices)
    texts = [
        pieces.tokens[s : s + n]
        for s, n in zip(pieces.starts[indices].tolist(), pieces.lengths[indices].tolist(), strict=True)
    ]
    ends = np.cumsum(pieces.lengths[indices])
    starts = ends - pieces.lengths[indices]
    return np.concatenate(texts), np.concatenate([starts[~continues], ends[-1:]])


def kneser_ney_bits_per_byte(tokens: np.ndarray, offsets: np.ndarray, held_out: HeldOut, vocab_size: int) -> float:
    """A modified Kneser-Ney 5-gram fitted to (tokens, offsets), on the same held-out documents as the models."""
    model = KneserNey.fit((tokens, offsets), vocab_size, order=5, start_id=held_out.end_of_text_id)
    return model.bits_per_byte(
        held_out.tokens, held_out.offsets, int(held_out.sizes.sum()), exclude=(held_out.end_of_text_id,)
    )
