"""Counting n-grams against a plain count, and the table's file against damage."""

from __future__ import annotations

import copy
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from athanor.base.errors import ModelError
from athanor.models.ngrams import NGrams

VOCABULARY, LONGEST = 5, 3


def expected(tokens: list[int], row: list[int], real: int | None, least: int) -> np.ndarray:
    """What follows the tokens `row` (vocabulary,), by the definition, of what was seen so often; real: the token that
    does, in counted text.
    """
    whole, rest = np.zeros(VOCABULARY), 1.0
    for length in range(min(LONGEST, len(row)), 0, -1):
        context = row[-length:]
        followers = Counter(tokens[i] for i in range(length, len(tokens)) if tokens[i - length : i] == context)
        if (total := followers.total()) < 2:
            continue
        share = np.zeros(VOCABULARY)
        for word, count in followers.items():
            left = count - (word == real)
            share[word] = (left - 0.75) / (total - (real is not None)) if left >= least else 0.0
        whole, rest = whole + rest * share, rest * (1 - share.sum())
    return whole


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, VOCABULARY - 1), min_size=4, max_size=60), st.data())
def test_targets_are_what_counting_gives(tokens: list[int], data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(tokens) - 4))
    piece = np.array(tokens[start : start + 12])
    rows, real, documents = piece[None, :-1], piece[None, 1:], np.zeros((1, len(piece) - 1), dtype=np.int64)
    border = len(piece) // 2
    documents[:, border:] = 1
    ngrams = NGrams.count(np.array(tokens, dtype=np.uint16), VOCABULARY, LONGEST)
    words, shares, targets = ngrams.look_up_counted(rows, documents, real)
    others, elsewhere = ngrams.look_up(rows, documents)
    assert (words == others).all()
    assert words.shape == shares.shape == targets.shape == (1, len(piece) - 1, ngrams.width)
    for place in range(len(piece) - 1):
        context = piece[border if place >= border else 0 : place + 1].tolist()
        for found, following, least in ((shares, real, 2), (targets, real, 1), (elsewhere, None, 2)):
            said = np.bincount(words[0, place], found[0, place], VOCABULARY)
            follows = None if following is None else int(following[0, place])
            np.testing.assert_allclose(said, expected(tokens, context, follows, least), atol=1e-6)
    np.testing.assert_array_equal(ngrams.pruned().look_up(rows, documents)[1].sum(-1), elsewhere.sum(-1))


@pytest.mark.parametrize("tokens", [[], [1], [1, 2], [1, 1, 1]])
def test_a_corpus_that_says_nothing(tokens: list[int]) -> None:
    row = np.array([[1, 1, 1]])
    ngrams = NGrams.count(np.array(tokens, dtype=np.uint16), 4)
    words, shares, targets = ngrams.look_up_counted(row, np.zeros_like(row), row)
    elsewhere, pruned = (one.look_up(row, np.zeros_like(row))[1] for one in (ngrams, ngrams.pruned()))
    for found in (shares, targets, elsewhere, pruned):
        assert (words[found > 0] == 1).all()
        assert (found.sum(-1) <= 1).all()


def some_text(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 7, 4000).astype(np.uint16)


def test_a_saved_table_is_the_same_table(tmp_path: Path) -> None:
    ngrams = NGrams.count(some_text(), 7)
    ngrams.save(tmp_path / "n.safetensors")
    again = NGrams.load(tmp_path / "n.safetensors", 7, 4)
    row = some_text(1)[None, :200].astype(np.int64)
    for one, other in zip(ngrams.look_up(row, row * 0), again.look_up(row, row * 0), strict=True):
        assert (one == other).all()
    assert copy.deepcopy(ngrams) is ngrams
    for vocab_size, longest in ((8, 4), (7, 3)):
        with pytest.raises(ModelError, match="another model"):
            NGrams.load(tmp_path / "n.safetensors", vocab_size, longest)
    with pytest.raises(ModelError, match="missing"):
        NGrams.load(tmp_path / "m.safetensors", 7, 4)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_damaged_table_is_refused_or_harmless(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.mktemp("damaged") / "n.safetensors"
    NGrams.count(some_text()[:400], 7, 2).save(path)
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    try:
        ngrams = NGrams.load(path, 7, 2)
    except ModelError:
        return
    row = some_text(1)[None, :50].astype(np.int64)
    words, shares = ngrams.look_up(row, row * 0)
    assert (words < 7).all()
    assert (shares >= 0).all()
    assert (shares.sum(-1) <= 1.001).all()
