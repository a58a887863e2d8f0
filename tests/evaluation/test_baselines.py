"""The baseline gets exactly the text that training consumed."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from athanor.base.randomness import generator
from athanor.evaluation.baselines import consumed, kneser_ney_bits_per_byte
from athanor.evaluation.bits_per_byte import HeldOut
from athanor.training.batches import IGNORED, DocumentPieces, MaskedSequences, PackedBatches


def batches() -> PackedBatches:
    """Every token is a number of its own, so that text can be recognised."""
    sizes = generator(0, "sizes").integers(2, 60, 30)
    tokens = np.arange(1, sizes.sum() + 1)
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    return PackedBatches(DocumentPieces(tokens, offsets, 16, 0), 3, 16, 5, pad_id=0, block_tokens=200)


@pytest.mark.parametrize("steps", [1, 2, 7, 100])
def test_consumed_is_what_was_a_target_and_pieces_are_joined(steps: int) -> None:
    source, targets = batches(), set()
    for _ in range(steps):
        batch = source.next()
        targets |= set(batch.targets[batch.targets != IGNORED].tolist())
    tokens, offsets = consumed(batches(), steps)
    assert tokens.tolist() == sorted(targets), "each once, in the order of the text"
    assert offsets[0] == 0
    assert offsets[-1] == len(tokens)
    borders = set(batches().sequences.starts[batches().sequences.begins_document].tolist())  # type: ignore[attr-defined]
    for start, end in pairwise(offsets.tolist()):
        assert np.diff(tokens[start:end]).tolist() == [1] * (end - start - 1), (
            "neighbours in one sequence are neighbours in the text"
        )
        assert not borders & set((tokens[start + 1 : end] - 1).tolist()), "no document's border inside a sequence"
    for place in offsets[1:-1].tolist():
        assert tokens[place] - tokens[place - 1] > 1 or tokens[place] - 1 in borders, "what can be joined is joined"


def test_only_documents_have_a_text() -> None:
    ids = np.arange(5)
    with pytest.raises(TypeError, match="documents"):
        consumed(PackedBatches(MaskedSequences([(ids, ids > 2)]), 1, 8, 0, pad_id=0), 1)


def test_kneser_ney_learns_a_pattern() -> None:
    pattern = np.append(np.tile([1, 2, 3, 4], 50), 0)
    held_out = HeldOut(pattern, np.array([0, len(pattern)]), np.array([200]), ("s",), ("en",), 0)
    bits = kneser_ney_bits_per_byte(pattern, np.array([0, len(pattern)]), held_out, 8)
    noise = generator(1, "noise").integers(1, 8, 200)
    assert bits < 0.1
    assert kneser_ney_bits_per_byte(noise, np.array([0, 200]), held_out, 8) > 2
