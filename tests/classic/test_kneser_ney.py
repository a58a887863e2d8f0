"""The vectorised model equals a dictionary implementation written from the formulas, and is a distribution."""

from __future__ import annotations

import resource
import time
from collections import Counter
from math import exp, log

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from athanor.base.errors import DataError
from athanor.base.randomness import generator
from athanor.classic.kneser_ney import KneserNey

START = -1  # of the reference: no token of any vocabulary


class PlainKneserNey:
    """Chen & Goodman 1998, equations 17 to 27, one dictionary look-up at a time."""

    def __init__(self, sequences: list[list[int]], vocab_size: int, order: int) -> None:
        self.vocab_size, self.order = vocab_size, order
        marked = [[START, *sequence] for sequence in sequences if sequence]
        occurrences = [self.grams(marked, n) for n in range(order + 1)]
        self.counts: list[Counter] = [Counter() for _ in range(order + 1)]
        self.counts[order] = occurrences[order]
        for n in range(1, order):
            for gram in occurrences[n + 1]:
                self.counts[n][gram[1:]] += 1
            for gram, count in occurrences[n].items():
                if gram[0] == START:
                    self.counts[n][gram] = count
        self.discounts = [self.estimate(list(counts.values())) for counts in self.counts]

    @staticmethod
    def grams(marked: list[list[int]], n: int) -> Counter:
        found = (tuple(s[i - n : i]) for s in marked for i in range(n, len(s) + 1))
        return Counter(gram for gram in found if gram and gram[-1] != START)

    @staticmethod
    def estimate(counts: list[int]) -> tuple[float, float, float]:
        n1, n2, n3, n4 = (counts.count(k) for k in (1, 2, 3, 4))
        if not (n1 and n2 and n3):
            return 0.5, 1.0, 1.5
        y = n1 / (n1 + 2 * n2)
        discounts = (1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
        return discounts if min(discounts) > 0 else (0.5, 1.0, 1.5)

    def probability(self, token: int, context: tuple[int, ...]) -> float:
        n = len(context) + 1
        lower = self.probability(token, context[1:]) if context else 1 / self.vocab_size
        followers = {gram[-1]: count for gram, count in self.counts[n].items() if gram[:-1] == context}
        total = sum(followers.values())
        if not total:
            return lower
        discount = {word: self.discounts[n][min(count, 3) - 1] for word, count in followers.items()}
        own = followers.get(token, 0) - discount.get(token, 0.0)
        return own / total + sum(discount.values()) / total * lower

    def log_probabilities(self, sequences: list[list[int]]) -> list[float]:
        result = []
        for sequence in sequences:
            marked = [START, *sequence]
            for i in range(1, len(marked)):
                result.append(log(self.probability(marked[i], tuple(marked[max(0, i - self.order + 1) : i]))))
        return result


def flat(sequences: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    tokens = np.array([token for sequence in sequences for token in sequence], dtype=np.uint16)
    return tokens, np.cumsum([0, *(len(sequence) for sequence in sequences)], dtype=np.int64)


def zipfian(seed: int, documents: int, length: int, vocab_size: int) -> list[list[int]]:
    """Documents in which frequent tokens, and frequent successors of each, exist as they do in text."""
    random = generator(seed, "kneser-ney test")
    result = []
    for _ in range(documents):
        steps = np.minimum(random.zipf(1.5, size=int(random.integers(0, length))), vocab_size) - 1
        result.append(((np.cumsum(steps) + random.zipf(2.5, size=len(steps))) % vocab_size).tolist())
    return result


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_equals_plain_dictionaries_on_text_like_data(order: int) -> None:
    training, heldout = zipfian(1, 60, 40, 12), zipfian(2, 8, 30, 12)
    plain = PlainKneserNey(training, 12, order)
    assert any(discounts != (0.5, 1.0, 1.5) for discounts in plain.discounts[2:]) or order == 1
    model = KneserNey.fit([np.array(sequence) for sequence in training], 12, order)
    np.testing.assert_allclose(model.log_probabilities(*flat(heldout)), plain.log_probabilities(heldout), rtol=1e-10)
    np.testing.assert_allclose(model.log_probabilities(*flat(training)), plain.log_probabilities(training), rtol=1e-10)


_sequences = st.lists(st.lists(st.integers(0, 5), max_size=12), max_size=12)


@settings(max_examples=150, deadline=None)
@given(training=_sequences, heldout=_sequences, order=st.integers(1, 6))
def test_equals_plain_dictionaries_on_anything(training: list[list[int]], heldout: list[list[int]], order: int) -> None:
    model = KneserNey.fit(flat(training), 6, order)
    expected = PlainKneserNey(training, 6, order).log_probabilities(heldout)
    np.testing.assert_allclose(model.log_probabilities(*flat(heldout)), expected, rtol=1e-10)


@settings(max_examples=100, deadline=None)
@given(training=_sequences, context=st.lists(st.integers(0, 5), max_size=6), start_id=st.none() | st.integers(0, 5))
def test_sums_to_one_after_any_context(training: list[list[int]], context: list[int], start_id: int | None) -> None:
    model = KneserNey.fit(flat(training), 6, 4, start_id)
    logs = model.log_probabilities(*flat([[*context, token] for token in range(6)]))
    assert np.exp(logs[len(context) :: len(context) + 1]).sum() == pytest.approx(1, abs=1e-12)


def test_without_training_text_every_token_is_equally_likely() -> None:
    for nothing in ([], [np.array([])], (np.array([], dtype=np.int32), np.array([0]))):
        model = KneserNey.fit(nothing, 50)
        np.testing.assert_allclose(model.log_probabilities(*flat([[3, 4, 3], [49]])), -log(50))
        assert model.log_probabilities(*flat([])).shape == (0,)


def test_ngrams_do_not_span_sequences() -> None:
    apart = KneserNey.fit([np.array([1, 2]), np.array([]), np.array([3, 4])] * 5, 8, 3)
    joined = KneserNey.fit([np.array([1, 2, 3, 4])] * 5, 8, 3)
    query = flat([[2, 3]])
    assert joined.log_probabilities(*query)[1] > apart.log_probabilities(*query)[1] + 0.5
    one_by_one = [apart.log_probabilities(*flat([s])) for s in ([1, 2, 3], [], [3, 4, 1, 2])]
    together = apart.log_probabilities(*flat([[1, 2, 3], [], [3, 4, 1, 2]]))
    np.testing.assert_array_equal(together, np.concatenate(one_by_one))


def test_large_vocabulary_and_both_input_forms() -> None:
    sequences = [np.array([199_999, 0, 150_000, 199_999, 0], dtype=np.int64), np.array([70_000, 199_999, 0])]
    separate = KneserNey.fit(iter(sequences), 200_000)
    joined = KneserNey.fit((np.concatenate(sequences), np.array([0, 5, 8])), 200_000)
    query = np.array([199_999, 0, 5]), np.array([0, 3])
    np.testing.assert_array_equal(separate.log_probabilities(*query), joined.log_probabilities(*query))
    assert exp(separate.log_probabilities(*query)[1]) > 0.5


def test_a_start_mark_of_the_vocabulary_is_the_same_context_inside_and_at_the_start() -> None:
    model = KneserNey.fit([np.array([1, 2, 0, 1, 2, 0, 1, 3])] * 4, 4, 2, start_id=0)
    logs = model.log_probabilities(np.array([1, 2, 0, 1]), np.array([0, 4]))
    assert logs[0] == logs[3]


def test_bits_per_byte_counts_all_but_the_excluded_ids() -> None:
    model = KneserNey.fit([], 256)
    tokens, offsets = flat([[10, 20, 0], [30, 0]])
    assert model.bits_per_byte(tokens, offsets, 5) == pytest.approx(8)
    assert model.bits_per_byte(tokens, offsets, 6, exclude={0}) == pytest.approx(4)
    with pytest.raises(DataError, match="at least one byte"):
        model.bits_per_byte(tokens, offsets, 0)


@pytest.mark.parametrize(
    ("tokens", "offsets", "message"),
    [
        ([1, 9], [0, 2], "Token id 9 lies outside"),
        ([1, -3], [0, 2], "Token id -3 lies outside"),
        ([1.5], [0, 1], "flat array of integers"),
        ([[1, 2]], [0, 2], "flat array of integers"),
        ([1, 2], [0, 3], "offsets must rise from 0 to the number of tokens, 2"),
        ([1, 2], [0, 2, 1, 2], "offsets must rise"),
        ([1, 2], [], "offsets must rise"),
        ([1, 2], 2, "offsets must rise"),
    ],
)
def test_wrong_tokens_and_offsets_are_named(tokens: list, offsets: list, message: str) -> None:
    data = np.array(tokens), np.array(offsets)
    with pytest.raises(DataError, match=message):
        KneserNey.fit(data, 9)
    with pytest.raises(DataError, match=message):
        KneserNey.fit([], 9).log_probabilities(*data)


def test_impossible_settings_are_named() -> None:
    for settings_ in ({"vocab_size": 0}, {"vocab_size": 5, "order": 0}, {"vocab_size": 5, "start_id": 6}):
        with pytest.raises(DataError):
            KneserNey.fit([], **settings_)


def test_300_000_tokens_take_a_moment() -> None:
    random = generator(3, "kneser-ney speed")
    tokens = np.minimum(random.zipf(1.2, size=300_000), 8192).astype(np.uint16) - np.uint16(1)
    offsets = np.arange(0, 300_001, 200)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    model = KneserNey.fit((tokens, offsets), 8192)
    logs = model.log_probabilities(tokens, offsets)
    assert time.process_time() - start < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000  # KiB
    unigram = np.log(np.bincount(tokens)[tokens] / len(tokens))
    assert logs.mean() > unigram.mean()
