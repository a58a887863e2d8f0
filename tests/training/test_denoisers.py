"""Corrupted texts against the published example, their statistics, and the losses that are learnt from them against
transformers' T5 and plain loops.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from athanor import models
from athanor.base.randomness import generator
from athanor.models.build import build, new
from athanor.models.encoder_decoder import EncoderDecoder
from athanor.training.batches import IGNORED
from athanor.training.denoisers import T5, UL2, CorruptedTexts, Denoiser, SourceTargetBatch, corrupt, hidden_spans
from athanor.training.drawn import DrawnBatches, Pieces
from athanor.training.objectives import denoising, next_token, prefix_language_model
from athanor.training.prefixes import Infilling, PrefixBatch, PrefixTexts, infill
from tests.training.test_masking import learns
from tests.training.texts import decoder_config, shards, special, t5_config, unigram_nats

END = special().end


def corrupted(denoisers: tuple[Denoiser, ...] = T5, rows: int = 4, length: int = 64) -> DrawnBatches:
    pieces = Pieces(*shards(), length - 2, least=4)
    return DrawnBatches(CorruptedTexts(pieces, special(), denoisers, END, 1), rows, length, 1)


def test_the_published_example() -> None:
    words = np.array(["Thank", "you", "for", "inviting", "me", "to", "your", "party", "last", "week"])
    hidden = np.isin(words, ["for", "inviting", "last"])
    ids = np.arange(len(words))
    source, target = corrupt(ids, hidden, [100, 101, 102])
    names = {**dict(enumerate(words)), 100: "<X>", 101: "<Y>", 102: "<Z>"}
    assert " ".join(names[i] for i in source.tolist()) == "Thank you <X> me to your party <Y> week"
    assert " ".join(names[i] for i in target.tolist()) == "<X> for inviting <Y> last <Z>"


@settings(deadline=None)
@given(st.integers(2, 600), st.sampled_from(UL2 + T5), st.integers(1, 50), st.integers(0, 1000))
def test_spans_have_the_denoisers_rate_and_the_text_can_be_put_together(
    length: int, denoiser: Denoiser, most: int, seed: int
) -> None:
    hidden = hidden_spans(length, denoiser, most, generator(seed, "test"))
    n_hidden = min(max(1, round(length * denoiser.rate)), length - 1)
    assert hidden.sum() == n_hidden
    assert not hidden[0]
    n_spans = int((hidden[1:] & ~hidden[:-1]).sum())
    wanted = 1 if denoiser.span is None else max(1, round(n_hidden / denoiser.span))
    assert n_spans == min(wanted, most, length - n_hidden)
    ids, sentinels = np.arange(length), 1000 + np.arange(most)
    source, target = corrupt(ids, hidden, sentinels)
    assert len(source) == length - n_hidden + n_spans
    assert len(target) == n_hidden + n_spans
    spans = np.split(target, np.flatnonzero(target >= 1000))[1:]
    whole = np.concatenate([spans[i - 1000][1:] if i >= 1000 else [i] for i in source.tolist()])
    assert (whole == ids).all()


def test_spans_fall_everywhere() -> None:
    shares = np.mean([hidden_spans(60, T5[0], 50, generator(0, "test", i)) for i in range(2000)], axis=0)
    assert shares.mean() == pytest.approx(0.15)
    assert shares[5:].min() > 0.07


def test_a_mixture_says_which_denoiser_it_was_and_resumes() -> None:
    batches = corrupted(UL2)
    examples = batches.examples
    modes = set()
    for index in range(len(examples.lengths)):
        drawn = examples.draw(index, 0)
        mode = special().modes.index(drawn["source"][0])
        modes.add(mode)
        share = len(drawn["targets"]) / (len(drawn["source"]) + len(drawn["targets"]))
        assert share < 0.45 or mode == 2
        assert drawn["source"][-1] == drawn["targets"][-1] == END
        assert len(drawn["source"]) <= examples.lengths[index]
        assert len(drawn["targets"]) <= examples.lengths[index]
        assert drawn["tokens"].tolist() == [END, *drawn["targets"][:-1]]
    assert modes == {0, 1, 2}
    for _ in range(7):
        batches.next()
    resumed = corrupted(UL2)
    resumed.set_position(batches.get_position())
    ours, theirs = batches.next().columns, resumed.next().columns
    assert all(torch.equal(column, theirs[name]) for name, column in ours.items())


def test_the_loss_of_packed_pairs_is_that_of_transformers_t5(tmp_path: Path) -> None:
    torch.manual_seed(1)
    config = transformers.T5Config(
        vocab_size=512, d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2, decoder_start_token_id=END
    )
    theirs = transformers.T5ForConditionalGeneration(config).eval()
    theirs.save_pretrained(tmp_path)
    ours = models.load(tmp_path)
    assert isinstance(ours, EncoderDecoder)
    batch = corrupted().next()
    assert isinstance(batch, SourceTargetBatch)
    wanted, documents = 0.0, 0
    for row in range(len(batch.tokens)):
        for document in range(int(batch.document_ids[row].max()) + 1):
            source = batch.source[row][batch.source_document_ids[row] == document]
            target = batch.targets[row][batch.document_ids[row] == document]
            with torch.no_grad():
                wanted += float(theirs(source[None], labels=target[None]).loss) * len(target)
            documents += 1
    assert documents > len(batch.tokens), "nothing was packed"
    loss = denoising(ours, batch)
    assert loss.count == batch.n_targets
    assert float(loss.sum) == pytest.approx(wanted, rel=1e-5)


def test_a_prefix_is_seen_as_a_whole_and_nothing_after_it() -> None:
    pieces = Pieces(*shards(), 63)
    batch = DrawnBatches(PrefixTexts(pieces, special(), 1), 4, 64, 1).next()
    assert isinstance(batch, PrefixBatch)
    model, wanted, count = build(decoder_config(), 1), 0.0, 0
    for row in range(4):
        for document in range(int(batch.document_ids[row].max()) + 1):
            own = batch.document_ids[row] == document
            tokens, targets, prefix = (column[row][own] for column in (batch.tokens, batch.targets, batch.prefix))
            size = int(prefix.sum())
            assert (targets[: size - 1] == IGNORED).all()
            assert (targets[size - 1 :] != IGNORED).all()
            seen = torch.ones(len(tokens), len(tokens)).tril().bool()
            seen[:, :size] = True
            logits = model(tokens[None], mask=seen[None, None])[0]
            wanted += float(F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum").detach())
            count += int((targets != IGNORED).sum())
    loss = prefix_language_model(model, batch)
    assert (float(loss.sum), loss.count) == (pytest.approx(wanted, rel=1e-5), count)


@settings(deadline=None)
@given(st.lists(st.integers(0, 200), min_size=1, max_size=30), st.data())
def test_infilled_texts_can_be_put_together(text: list[int], data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(text)))
    stop = data.draw(st.integers(start, len(text)))
    before, behind, last = special().prefix, special().suffix, special().middle
    found = infill(np.array(text), start, stop, "prefix first", special()).tolist()
    assert found == [before, *text[:start], behind, *text[stop:], last, *text[start:stop]]
    found = infill(np.array(text), start, stop, "suffix first", special()).tolist()
    assert found == [before, behind, *text[stop:], last, *text[:start], *text[start:stop]]


def test_half_of_the_texts_are_infilled_in_both_orders() -> None:
    examples = Infilling(Pieces(*shards(), 60), special(), 1)
    orders = []
    for index in range(len(examples.lengths)):
        for epoch in range(10):
            drawn = examples.draw(index, epoch)
            tokens = drawn["tokens"].tolist()
            assert drawn["targets"].tolist() == [*tokens[1:], END]
            cut = special().middle in tokens
            orders.append(0 if not cut else 2 if tokens[2] == special().suffix and tokens[1] == special().prefix else 1)
    shares = np.bincount(orders) / len(orders)
    assert shares == pytest.approx([0.5, 0.25, 0.25], abs=0.06)


def test_they_learn() -> None:
    prefixes, holes = PrefixTexts(Pieces(*shards(), 63), special(), 1), Infilling(Pieces(*shards(), 60), special(), 1)
    for batches, model, objective in (
        (corrupted(UL2, rows=8), new(t5_config()), denoising),
        (DrawnBatches(prefixes, 8, 64, 1), build(decoder_config(), 1), prefix_language_model),
        (DrawnBatches(holes, 8, 64, 1), build(decoder_config(), 1), next_token),
    ):
        targets = batches.next().targets
        entropy = unigram_nats(targets[targets != IGNORED].numpy())
        found = learns(model, batches, objective, 40, 0.03)
        assert np.mean([step["loss"] for step in found[-5:]]) < 0.8 * entropy, objective
