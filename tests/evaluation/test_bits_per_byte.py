"""Held-out bits per byte against reading every document alone, and the sums by hand."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from athanor.base.randomness import generator
from athanor.corpus.document import Document
from athanor.corpus.shards import Shards, write_shards
from athanor.evaluation.bits_per_byte import (
    HeldOut,
    _Windows,
    bits_per_byte,
    document_nats,
    grouped_bits_per_byte,
    sample_held_out,
)
from athanor.models.build import build
from athanor.models.config import AttentionConfig, LayerConfig, MlpConfig, ModelConfig
from athanor.models.decoder import Decoder
from athanor.tokenizer import train_tokenizer
from athanor.training.batches import IGNORED

END = 0


def held_out(sizes: list[int], length_of_token: int = 3) -> HeldOut:
    """Documents of these many tokens, each followed by the end-of-text id."""
    bodies = [generator(1, "document", i).integers(1, 64, size) for i, size in enumerate(sizes)]
    tokens = np.concatenate([np.append(body, END) for body in bodies]).astype(np.uint16)
    offsets = np.concatenate([[0], np.cumsum([size + 1 for size in sizes])])
    bytes_ = np.array(sizes) * length_of_token
    names, languages = tuple("ab"[i % 2] for i in range(len(sizes))), ("en",) * len(sizes)
    return HeldOut(tokens, offsets, bytes_, names, languages, END)


@pytest.fixture(scope="module")
def model() -> Decoder:
    model = build(
        ModelConfig(64, 16, 256, (LayerConfig(AttentionConfig(2, 1, 8, qk_norm="head"), MlpConfig(24)),) * 2), 1
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            draw = generator(2, name).standard_normal(parameter.shape, dtype=np.float32)
            parameter.add_(torch.from_numpy(draw) * 0.3)
    return model


def token_nats_alone(model: Decoder, tokens: np.ndarray, before: int) -> np.ndarray:
    """−log p of each token after the first `before`, given all that stand before it in `tokens`."""
    with torch.no_grad():
        ids = torch.from_numpy(tokens.astype(np.int64))
        logprobs = torch.log_softmax(model(ids[None, :-1])[0].double(), -1)
    return -logprobs.gather(1, ids[1:, None]).squeeze(1).numpy()[before - 1 :]


def plainly(model: Decoder, documents: HeldOut, length: int) -> np.ndarray:
    """Window after window, one forward pass each."""
    nats = []
    for start, end in pairwise(documents.offsets.tolist()):
        text = np.concatenate([[END], documents.tokens[start : end - 1]])
        total = 0.0
        scored = 1
        while scored < len(text):
            first = 0 if scored == 1 else scored - length // 2 - 1
            last = min(len(text), first + length + 1)
            total += token_nats_alone(model, text[first:last], scored - first).sum()
            scored = last
        nats.append(total)
    return np.array(nats)


@pytest.mark.parametrize("length", [8, 9, 32, 128])
def test_every_document_costs_what_it_costs_alone(length: int, model: Decoder) -> None:
    documents = held_out([5, 1, 100, 32, 31, 33, 64, 8, 9, 3])
    got = document_nats(model, documents, length, rows=3)
    np.testing.assert_allclose(got, plainly(model, documents, length), rtol=1e-5)
    short = np.array([0, 1, 9])
    whole = [
        token_nats_alone(
            model, np.append(END, documents.tokens[documents.offsets[i] : documents.offsets[i + 1] - 1]), 1
        ).sum()
        for i in short
    ]
    np.testing.assert_allclose(got[short], whole, rtol=1e-5)


def test_bf16_is_close(model: Decoder) -> None:
    documents = held_out([60, 20, 100])
    fp32, bf16 = (document_nats(model, documents, 32, precision) for precision in ("fp32", "bf16"))
    np.testing.assert_allclose(bf16, fp32, rtol=0.02)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 70), min_size=1, max_size=8).filter(any), st.integers(1, 40))
def test_every_token_is_scored_once_with_half_a_window_before_it(sizes: list[int], length: int) -> None:
    documents = held_out(sizes)
    windows = _Windows(documents, length)
    scored: list[int] = []
    for i, (document, begin, first, end) in enumerate(windows.spans):
        inputs, targets = windows.pair(i)
        assert len(inputs) == len(targets) == windows.lengths[i] <= length
        start = int(documents.offsets[document])
        assert begin == start or first - begin >= length // 2
        assert (targets != IGNORED).tolist() == [place >= first for place in range(begin, end)]
        assert targets[first - begin :].tolist() == documents.tokens[first:end].tolist()
        before = [END if place == start else int(documents.tokens[place - 1]) for place in range(begin, end)]
        assert inputs.tolist() == before
        scored += range(first, end)
    ends = set((documents.offsets[1:] - 1).tolist())
    assert sorted(scored) == [place for place in range(len(documents.tokens)) if place not in ends]


def test_bits_per_byte_by_hand_and_in_groups() -> None:
    documents = held_out([10, 20, 30])
    nats = np.log(2) * np.array([30.0, 30.0, 180.0])
    assert bits_per_byte(nats, documents) == pytest.approx(240 / 180)
    groups = grouped_bits_per_byte({"base": nats, "sft": 2 * nats}, documents, documents.sources)
    assert groups["a"] == {"base": pytest.approx(210 / 120), "sft": pytest.approx(420 / 120)}
    assert groups["b"]["base"] == pytest.approx(0.5)
    weights = {"a": 120, "b": 60}
    assert sum(groups[name]["base"] * weights[name] for name in groups) / 180 == pytest.approx(240 / 180)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Shards:
    """Real text, of which the tokenizer has seen nothing: its Chinese is cut into parts of characters."""
    tokenizer = train_tokenizer(["a plain english text about nothing"], vocab_size=320)
    folder = tmp_path_factory.mktemp("shards") / "heldout"
    texts = [
        ("炉火慢慢燃烧" * (i % 3 + 1), "zh") if i % 4 == 0 else (f"text number {i} " * (i % 5 + 1), "en")
        for i in range(40)
    ]
    documents = [
        Document(text, f"d{i}", f"source {language}", "CC0", language) for i, (text, language) in enumerate(texts)
    ]
    write_shards(
        documents,
        lambda many: [tokenizer.encode(t) for t in many],
        tokenizer.end_of_text_id,
        folder,
        tokenizer.vocab_size,
    )
    return Shards.open(folder)


def test_the_sample_is_keyed_and_counts_bytes_of_text_not_of_tokens(shards: Shards) -> None:
    one, again, other = (sample_held_out(shards, 200, seed) for seed in (1, 1, 2))
    assert np.array_equal(one.tokens, again.tokens)
    assert not np.array_equal(one.tokens, other.tokens)
    assert 100 < len(one.tokens) <= 200
    everything = sample_held_out(shards, 10**9, 1)
    assert len(everything) == 40
    assert everything.n_tokens == shards.n_tokens - 40
    assert everything.sizes.sum() == shards.index.n_bytes
    assert set(everything.languages) == {"en", "zh"}
    assert len(sample_held_out(shards, 1, 1)) == 1


def test_tokens_that_are_parts_of_characters_are_counted_like_others(shards: Shards) -> None:
    """A uniform model costs log2(vocabulary) bits a token; Chinese has three bytes a character and as many tokens."""
    model = build(
        ModelConfig(320, 16, 64, (LayerConfig(AttentionConfig(1, 1, 8, qk_norm="head"), MlpConfig(8)),) * 1), 0
    )
    with torch.no_grad():
        model.embedding.tokens.weight.zero_()
    documents = sample_held_out(shards, 10**9, 1)
    nats = document_nats(model, documents, 32)
    groups = grouped_bits_per_byte({"uniform": nats}, documents, documents.languages)
    assert groups["zh"]["uniform"] == pytest.approx(np.log2(320))
    assert bits_per_byte(nats, documents) == pytest.approx(documents.n_tokens * np.log2(320) / documents.sizes.sum())
