"""N-grams of the whole corpus as targets: as a loss, against its definition."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy

from athanor.models.build import build
from athanor.models.config import HeadConfig
from athanor.models.ngrams import NGrams
from athanor.training.batches import IGNORED, DocumentPieces, PackedBatches
from athanor.training.growth import GrowingBatches
from athanor.training.objectives import linear_cross_entropy, next_token
from athanor.training.schedules import Growth, Schedule, Turn
from athanor.training.soft_targets import TAUGHT_TOKENS, SoftBatch, SoftBatches
from tests.training.texts import decoder_config, shards, special


def test_the_loss_is_the_cross_entropy_with_the_distribution() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(20, 8, generator=generator), torch.randn(11, 8, generator=generator)
    words = torch.randint(11, (20, 6), generator=generator)  # some of them twice
    shares = torch.rand(20, 6, generator=generator)
    shares /= shares.sum(-1, keepdim=True)
    whole = torch.zeros(20, 11).scatter_add_(1, words, shares)
    gradients = []
    for loss in (
        lambda h, w: linear_cross_entropy(h, w, words, shares),
        lambda h, w: cross_entropy(h @ w.T, whole, reduction="sum"),
    ):
        inputs = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        value = loss(*inputs)
        value.backward()
        gradients.append((value.detach(), *(one.grad for one in inputs)))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def soft(places: int = 10 * 4 * 32, growing: bool = False) -> SoftBatches:
    tokens, offsets = shards()
    source = PackedBatches(
        DocumentPieces(tokens, offsets, 32, special().end), rows=4, length=32, seed=1, pad_id=special().end
    )
    whole = GrowingBatches(source, places, length=Growth(16, 32)) if growing else source
    return SoftBatches(whole, NGrams.count(tokens, 512))


@pytest.mark.parametrize("growing", [False, True])
def test_the_share_follows_the_rate_and_a_resumed_stream_goes_on(growing: bool) -> None:
    one, other = soft(growing=growing), soft(growing=growing)
    schedule, turns = Schedule(2, 0.1), [Turn(3, 9)]
    shares = []
    for step in range(1, 10):
        for source in (one, other) if step > 6 else (one,):
            source.follow(schedule.left(step, turns), 0)
        batch = one.next()
        assert isinstance(batch, SoftBatch)
        shares.append(batch.metrics["ngram_share"])
        if step > 6:
            again = other.next()
            assert batch.columns.keys() == again.columns.keys()
            assert all(torch.equal(batch.columns[name], again.columns[name]) for name in batch.columns)
        other.set_position(one.get_position())
    assert shares[:3] == [1, 1, 1]
    assert shares[3:] == pytest.approx([6 / 7, 5 / 7, 4 / 7, 3 / 7, 2 / 7, 1 / 7])


def test_the_share_falls_with_what_was_read_and_ends() -> None:
    source = soft()
    found = []
    for tokens in (0, TAUGHT_TOKENS // 4, TAUGHT_TOKENS // 2):
        source.follow(0.5, tokens)
        found.append(source.next().metrics["ngram_share"])
    assert found == pytest.approx([0.5, 0.375, 0.25])
    source.follow(0.5, 2 * TAUGHT_TOKENS)
    assert not isinstance(source.next(), SoftBatch)


@pytest.mark.parametrize("soft_cap", [None, 5.0])
def test_a_network_learns_from_them(soft_cap: float | None) -> None:
    config = decoder_config()
    model = build(config if soft_cap is None else replace(config, head=HeadConfig(soft_cap=soft_cap)), 0)
    batch = soft().next()
    assert isinstance(batch, SoftBatch)
    loss = next_token(model, batch)
    labelled = batch.targets != IGNORED
    hidden = model.hidden(batch.tokens, positions=batch.positions, document_ids=batch.document_ids)[labelled]
    whole = torch.zeros(len(hidden), 512).scatter_add_(1, *batch.labels(labelled))
    wanted = cross_entropy(model.logits(hidden), whole, reduction="sum")
    assert loss.count == len(hidden)
    torch.testing.assert_close(loss.sum, wanted, rtol=1e-5, atol=1e-3)
    parts = batch.split(1)
    assert sum(float(next_token(model, part).sum) for part in parts) == pytest.approx(float(wanted), rel=1e-5)
