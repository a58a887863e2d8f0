"""Packing: nothing is lost, cut or seen twice, and a batch is a function of the seed and a small position."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from athanor.base.errors import DataError
from athanor.training.batches import IGNORED, Batch, DocumentPieces, MaskedSequences, PackedBatches, pack


@st.composite
def lengths_and_capacity(draw: st.DrawFn) -> tuple[list[int], int]:
    capacity = draw(st.integers(1, 300))
    return draw(st.lists(st.integers(1, capacity), max_size=200)), capacity


@given(lengths_and_capacity())
def test_pack_places_each_index_once_within_capacity_and_wastes_little(case: tuple[list[int], int]) -> None:
    lengths, capacity = case
    rows = pack(np.array(lengths, dtype=np.int64), capacity)
    assert Counter(i for row in rows for i in row) == Counter(range(len(lengths)))
    fill = [sum(lengths[i] for i in row) for row in rows]
    assert all(f <= capacity for f in fill)
    assert all(a + b > capacity for a, b in pairwise(sorted(fill))), "two rows could be one"


def test_pack_fills_rows_of_ordinary_lengths() -> None:
    lengths = np.minimum(np.random.default_rng(0).geometric(1 / 90, 5000), 256)
    rows = pack(lengths, 256)
    assert lengths.sum() / (len(rows) * 256) > 0.98


@st.composite
def corpora(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, int]:
    sizes = draw(st.lists(st.integers(0, 40), min_size=1, max_size=12))
    bodies = [np.append(np.arange(size) + 1 + 100 * i, 0) for i, size in enumerate(sizes)]
    offsets = np.concatenate([[0], np.cumsum([len(b) for b in bodies])])
    return np.concatenate(bodies), offsets, draw(st.integers(1, 50))


@given(corpora())
def test_each_token_is_a_target_once_after_its_own_predecessor(case: tuple[np.ndarray, np.ndarray, int]) -> None:
    tokens, offsets, length = case
    pieces = DocumentPieces(tokens.astype(np.uint16), offsets, length, end_of_text_id=0)
    before = {int(offset) for offset in offsets[:-1]}
    seen: list[int] = []
    for i in range(len(pieces.lengths)):
        inputs, targets = pieces.pair(i)
        assert len(inputs) == len(targets) == pieces.lengths[i] <= length
        start = int(pieces.starts[i])
        seen += range(start, start + len(targets))
        assert targets.tolist() == tokens[start : start + len(targets)].tolist()
        wanted = [0 if place in before else int(tokens[place - 1]) for place in range(start, start + len(targets))]
        assert inputs.tolist() == wanted
    assert sorted(seen) == list(range(len(tokens)))


def test_pieces_of_read_only_memory_maps_stay_untouched(tmp_path: object) -> None:
    tokens = np.arange(1, 10, dtype=np.uint16)
    tokens.setflags(write=False)
    inputs, targets = DocumentPieces(tokens, np.array([0, 9]), 4, 0).pair(0)
    inputs[:] = 7
    targets[:] = 7
    assert tokens.tolist() == list(range(1, 10))


def test_a_mask_trains_the_first_answer_token_and_the_stop_token() -> None:
    ids = np.array([10, 11, 12, 20, 21, 99, 5])  # prompt, answer with its stop token, a line break
    mask = np.array([False, False, False, True, True, True, False])
    inputs, targets = MaskedSequences([(ids, mask)]).pair(0)
    assert inputs.tolist() == [10, 11, 12, 20, 21, 99]
    assert targets.tolist() == [IGNORED, IGNORED, 20, 21, 99, IGNORED]


class _Numbered:
    """Sequence i is made of the number i."""

    def __init__(self, lengths: list[int]) -> None:
        self.lengths = np.array(lengths)

    def pair(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        body = np.full(self.lengths[index], index)
        return body, body


def epoch_of(batches: PackedBatches, epoch: int) -> list[int]:
    """Sequence indices of one epoch in reading order."""
    while batches.position.epoch < epoch:
        batches._next_row()
    members = []
    while True:
        row = batches._next_row()
        if batches.position.epoch != epoch:
            batches.position.row -= 1
            return members
        members += row


def numbered(seed: int = 0, block_tokens: int = 200) -> PackedBatches:
    lengths = np.random.default_rng(7).integers(1, 17, 120).tolist()
    return PackedBatches(_Numbered(lengths), 3, 16, seed, pad_id=0, block_tokens=block_tokens)


@pytest.mark.parametrize("block_tokens", [1, 50, 200, 1 << 21])
def test_every_epoch_has_every_sequence_once_in_another_order(block_tokens: int) -> None:
    batches = numbered(block_tokens=block_tokens)
    first, second = epoch_of(batches, 0), epoch_of(batches, 1)
    assert sorted(first) == sorted(second) == list(range(120))
    assert first != second
    assert epoch_of(numbered(1, block_tokens), 0) != first
    assert epoch_of(numbered(0, block_tokens), 0) == first


def test_blocks_bound_what_is_packed_at_a_time() -> None:
    batches = numbered(block_tokens=200)
    order, bounds = batches._epoch(0)
    assert len(bounds) - 1 == round(batches.sequences.lengths.sum() / 200)
    for start, end in pairwise(bounds):
        assert batches.sequences.lengths[order[start:end]].sum() <= 1.5 * 200 + 16


def equal(a: Batch, b: Batch) -> bool:
    return all(torch.equal(column, b.columns[name]) for name, column in a.columns.items())


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 60), st.sampled_from([1, 100, 1 << 21]))
def test_resuming_anywhere_gives_the_stream_that_never_stopped(stop: int, block_tokens: int) -> None:
    whole = numbered(block_tokens=block_tokens)
    for _ in range(stop):
        whole.next_rows()
    position = whole.get_position()
    resumed = numbered(block_tokens=block_tokens)
    resumed.next()
    resumed.set_position(position)
    for _ in range(25):
        assert equal(whole.next(), resumed.next())
    assert position != whole.get_position(), "a position is a copy"


def test_a_batch_keeps_sequences_apart() -> None:
    batch = numbered().next()
    for tokens, targets, ids, positions in zip(
        batch.tokens, batch.targets, batch.document_ids, batch.positions, strict=True
    ):
        for document in ids.unique().tolist():
            places = (ids == document).nonzero().squeeze(1)
            if document == -1:
                assert (targets[places] == IGNORED).all()
                continue
            assert places.diff().eq(1).all()
            assert positions[places].tolist() == list(range(len(places)))
            assert tokens[places].unique().numel() == 1
    assert batch.n_targets == int((batch.document_ids >= 0).sum())
    assert [part.tokens.shape[0] for part in batch.split(2)] == [2, 1]
    assert sum(part.n_targets for part in batch.split(2)) == batch.n_targets


def test_data_that_cannot_be_packed_is_refused() -> None:
    with pytest.raises(DataError, match="nothing to learn"):
        PackedBatches(_Numbered([]), 1, 8, 0, pad_id=0)
    with pytest.raises(DataError, match="sequence of 9 tokens does not fit into a row of 8"):
        PackedBatches(_Numbered([9]), 1, 8, 0, pad_id=0)
