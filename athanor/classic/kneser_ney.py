"""Interpolated modified Kneser-Ney n-gram model over token ids (Chen & Goodman 1998): what a neural model has to beat.

Fitted on the token stream that training consumed, then scored on held-out text. An n-gram is identified by the pair
(id of its first n − 1 tokens, last token), so 64-bit keys hold any vocabulary and order, and a look-up is one binary
search. Two conventions are KenLM's (Heafield et al. 2013): one start mark stands before each sequence, and an n-gram
that begins with it keeps its raw count, having nothing to its left; an order too small to estimate its three discounts
uses 0.5, 1 and 1.5. Deviation: the vocabulary is closed, so there is no unknown token.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from math import log

import numpy as np

from athanor.base.errors import DataError

_FALLBACK_DISCOUNTS = (0.5, 1.0, 1.5)
_UNSEEN = -1


@dataclass(frozen=True)
class _Order:
    """What one order n adds: P_n(token | context) = share + backoff(context) · P_{n−1}(token | shorter context).

    keys: (n-grams,) int64, sorted: id of the first n − 1 tokens × base + last token. An n-gram's id is its index here.
    share: (n-grams,) float64, the discounted count divided by the count of the context.
    backoff: ((n − 1)-grams,) float64, the weight of the next lower order; 1 after a context that was never continued.
    """

    keys: np.ndarray
    share: np.ndarray
    backoff: np.ndarray

    def find(self, keys: np.ndarray) -> np.ndarray:
        """The id of each key, −1 where it was never seen."""
        if not self.keys.size:
            return np.full(keys.shape, _UNSEEN, dtype=np.int64)
        ascending = np.argsort(keys)  # neighbouring searches then touch neighbouring memory: six times faster
        sought = keys[ascending]
        places = np.minimum(np.searchsorted(self.keys, sought), len(self.keys) - 1)
        found = np.empty(keys.shape, dtype=np.int64)
        found[ascending] = np.where(self.keys[places] == sought, places, _UNSEEN)
        return found


class KneserNey:
    """P(token | up to order − 1 tokens before it in its sequence), made by `fit`. Sums to 1 over the vocabulary."""

    def __init__(self, orders: tuple[_Order, ...], vocab_size: int, start_id: int) -> None:
        self._orders = orders
        self.vocab_size = vocab_size
        self.start_id = start_id

    @classmethod
    def fit(
        cls,
        sequences: Iterable[np.ndarray] | tuple[np.ndarray, np.ndarray],
        vocab_size: int,
        order: int = 5,
        start_id: int | None = None,
    ) -> KneserNey:
        """Counts every n-gram up to `order` that lies within one sequence.

        sequences: arrays of token ids; or a pair (tokens, offsets), sequence i being tokens[offsets[i]:offsets[i + 1]].
        start_id: the mark before every sequence. By default an id of its own outside the vocabulary, which is never
            predicted; an id of the vocabulary shares its statistics with that token.
        Raises DataError for ids outside the vocabulary and offsets that do not fit the tokens.
        """
        if vocab_size < 1 or order < 1:
            raise DataError(f"No n-gram model has order {order} and {vocab_size} tokens.", "Both must be at least 1.")
        start_id = vocab_size if start_id is None else start_id
        if not 0 <= start_id <= vocab_size:
            raise DataError(f"Start id {start_id} lies outside the vocabulary of {vocab_size} tokens.")
        tokens, offsets = sequences if isinstance(sequences, tuple) and len(sequences) == 2 else _join(sequences)
        stream, depth = _with_starts(tokens, offsets, vocab_size, start_id)
        base = max(vocab_size, start_id + 1)
        orders: list[_Order] = []
        for keys, counts in _adjusted_counts(stream, depth, base, order):
            orders.append(_discount(keys, counts, keys // base, len(orders[-1].keys) if orders else 1))
        return cls(tuple(orders), vocab_size, start_id)

    def log_probabilities(self, tokens: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """Natural logarithm of the probability of each token: (tokens,) float64, all finite.

        Raises DataError for ids outside the vocabulary and offsets that do not fit the tokens.
        """
        stream, depth = _with_starts(tokens, offsets, self.vocab_size, self.start_id)
        base = len(self._orders[0].keys)
        places = np.flatnonzero(depth)  # the start marks themselves are not scored
        probability = np.full(len(places), 1 / self.vocab_size)
        grams = np.zeros(len(stream), dtype=np.int64)  # id of the n-gram ending at each position; 0 for the empty one
        for n, level in enumerate(self._orders, start=1):
            contexts = grams[places - 1]
            known = np.flatnonzero(contexts != _UNSEEN)
            found = level.find(contexts[known] * base + stream[places[known]])
            probability[known] *= level.backoff[contexts[known]]
            hits = found != _UNSEEN
            probability[known[hits]] += level.share[found[hits]]
            grams = np.full(len(stream), _UNSEEN, dtype=np.int64)
            grams[places[known]] = found
            if n == 1:
                grams[depth == 0] = self.start_id
        return np.log(probability)

    def bits_per_byte(
        self, tokens: np.ndarray, offsets: np.ndarray, byte_count: int, exclude: Collection[int] = ()
    ) -> float:
        """Bits needed for the tokens per byte of the text they stand for.

        byte_count: UTF-8 length of that text. exclude: ids, such as an end-of-document mark, that stand for no text;
            they remain context, but their bits are not counted.
        """
        if byte_count < 1:
            raise DataError("Bits per byte need a text of at least one byte.")
        nats = self.log_probabilities(tokens, offsets)
        counted = ~np.isin(tokens, list(exclude))
        return float(-nats[counted].sum() / (log(2) * byte_count))


def _join(sequences: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """One array of tokens and the offsets of its sequences."""
    arrays = [np.asarray(sequence).reshape(-1) for sequence in sequences]
    offsets = np.concatenate([[0], np.cumsum([len(array) for array in arrays], dtype=np.int64)])
    filled = [array for array in arrays if array.size]
    return np.concatenate(filled) if filled else np.empty(0, dtype=np.int32), offsets


def _with_starts(
    tokens: np.ndarray, offsets: np.ndarray, vocab_size: int, start_id: int
) -> tuple[np.ndarray, np.ndarray]:
    """The tokens with a start mark before each non-empty sequence, and each position's distance from its start mark.

    Both are (tokens + sequences,) int32. Raises DataError when ids or offsets are wrong.
    """
    tokens, offsets = np.asarray(tokens), np.asarray(offsets)
    if tokens.ndim != 1 or (tokens.size and not np.issubdtype(tokens.dtype, np.integer)):
        raise DataError(f"Token ids must be a flat array of integers, not {tokens.ndim}-dimensional {tokens.dtype}.")
    if tokens.size and not 0 <= tokens.min() <= tokens.max() < vocab_size:
        wrong = tokens.max() if tokens.max() >= vocab_size else tokens.min()
        raise DataError(f"Token id {wrong} lies outside the vocabulary of {vocab_size} tokens.")
    lengths: np.ndarray = np.diff(offsets.reshape(-1).astype(np.int64))
    if offsets.ndim != 1 or not offsets.size or offsets[0] != 0 or offsets[-1] != tokens.size or np.any(lengths < 0):
        raise DataError(f"Sequence offsets must rise from 0 to the number of tokens, {tokens.size}.")
    lengths = lengths[lengths > 0]
    starts = np.cumsum(lengths + 1) - (lengths + 1)
    is_start = np.zeros(len(tokens) + len(lengths), dtype=bool)
    is_start[starts] = True
    stream = np.full(len(is_start), start_id, dtype=np.int32)
    stream[~is_start] = tokens
    depth = np.arange(len(stream), dtype=np.int32) - np.repeat(starts, lengths + 1).astype(np.int32)
    return stream, depth


def _adjusted_counts(
    stream: np.ndarray, depth: np.ndarray, base: int, order: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Keys and counts of the n-grams of each order, 1 to `order`.

    The highest order counts occurrences. A lower one counts the distinct tokens seen before an n-gram, plus the
    occurrences that begin with a start mark.
    """
    keys = np.arange(base, dtype=np.int64)
    grams = stream  # id of the n-gram that ends at each position
    for n in range(1, order):
        ends = np.flatnonzero(depth >= n)  # where an (n + 1)-gram ends
        longer_keys, longer_grams, examples = _number(grams[ends - 1].astype(np.int64) * base + stream[ends])
        counts = np.bincount(grams[ends[examples]], minlength=len(keys))
        if n > 1:
            counts += np.bincount(grams[depth == n - 1], minlength=len(keys))
        yield keys, counts
        keys, grams = longer_keys, np.full(len(stream), _UNSEEN, dtype=np.int32)
        grams[ends] = longer_grams
    yield keys, np.bincount(grams[depth >= max(order - 1, 1)], minlength=len(keys))


def _number(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sorted distinct values, the index among them of each value, and for each the index of one occurrence.

    numpy.unique does the same with a stable sort, which takes twice as long.
    """
    ascending = np.argsort(values)
    ordered = values[ascending]
    is_first = np.ones(len(ordered), dtype=bool)
    is_first[1:] = ordered[1:] != ordered[:-1]
    index = np.empty(len(values), dtype=np.int32)
    index[ascending] = np.cumsum(is_first, dtype=np.int32) - 1
    return ordered[is_first], index, ascending[is_first]


def _discount(keys: np.ndarray, counts: np.ndarray, contexts: np.ndarray, context_count: int) -> _Order:
    """Takes the discount of 1, 2, and 3 or more from each count and gives what was taken to the lower order."""
    taken = np.array([0.0, *_discounts(counts)])[np.minimum(counts, 3)]
    total = np.bincount(contexts, weights=counts, minlength=context_count)
    freed = np.bincount(contexts, weights=taken, minlength=context_count)
    never_continued = total == 0
    total[never_continued] = freed[never_continued] = 1.0
    return _Order(keys, (counts - taken) / total[contexts], freed / total)


def _discounts(counts: np.ndarray) -> tuple[float, float, float]:
    """D1, D2 and D3+ of an order from how many n-grams occur 1, 2, 3 and 4 times (Chen & Goodman 1998, equation 26)."""
    _, n1, n2, n3, n4, *_ = np.bincount(np.minimum(counts, 5), minlength=6).tolist()
    if not (n1 and n2 and n3):
        return _FALLBACK_DISCOUNTS
    y = n1 / (n1 + 2 * n2)
    estimated = 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3
    return estimated if min(estimated) > 0 else _FALLBACK_DISCOUNTS
