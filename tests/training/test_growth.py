"""Growing batches: the same text in the same order, in sizes that are a function of the position."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from athanor.models.decoder import Decoder
from athanor.training.batches import IGNORED, Batch, PackedBatches
from athanor.training.growth import GrowingBatches, cut
from athanor.training.objectives import next_token
from athanor.training.schedules import Growth

Make = Callable[[], PackedBatches]


def growing(make_batches: Make) -> GrowingBatches:
    return GrowingBatches(make_batches(), 1280, Growth(1, 4), Growth(4, 16))


def test_sizes_follow_what_was_read(make_batches: Make) -> None:
    source = growing(make_batches)
    shapes = [tuple(source.next().tokens.shape) for _ in range(30)]
    # Half of 1,280 places, in two stages of 320: the first in rows of 16 cut into fours.
    assert shapes[:20] == [(4, 4)] * 20
    assert shapes[20:30] == [(4, 8)] * 10
    assert tuple(source.next().tokens.shape) == (4, 16)


def test_the_text_and_its_order_stay(make_batches: Make) -> None:
    source, plain = growing(make_batches), make_batches()
    grown = torch.cat([source.next().targets.flatten() for _ in range(34)])
    usual = torch.cat([plain.next().targets.flatten() for _ in range(20)])
    assert torch.equal(grown, usual[: len(grown)])


@pytest.mark.parametrize("moment", [1, 20, 25, 33])
def test_it_continues_from_its_position(moment: int, make_batches: Make) -> None:
    source = growing(make_batches)
    for _ in range(moment):
        source.next()
    continued = growing(make_batches)
    continued.set_position(source.get_position())
    for _ in range(12):
        one, other = source.next(), continued.next()
        assert all(torch.equal(column, other.columns[name]) for name, column in one.columns.items())


def test_parts_of_a_row_do_not_see_each_other(make_batches: Make, make_model: Callable[[int], Decoder]) -> None:
    batch, model = make_batches().next(), make_model(0)
    parts = cut(batch, 8)
    assert parts.n_targets == batch.n_targets
    first = Batch(*(column[:, :8] for column in (batch.tokens, batch.targets, batch.document_ids, batch.positions)))
    second = Batch(*(column[:, 8:] for column in (batch.tokens, batch.targets, batch.document_ids, batch.positions)))
    assert int((first.targets != IGNORED).sum()) > 0
    apart = next_token(model, first).sum + next_token(model, second).sum
    torch.testing.assert_close(next_token(model, parts).sum, apart, rtol=1e-5, atol=1e-4)


def test_a_length_that_does_not_end_at_the_rows_is_refused(make_batches: Make) -> None:
    with pytest.raises(ValueError, match="cannot grow to 8"):
        GrowingBatches(make_batches(), 100, length=Growth(4, 8))
