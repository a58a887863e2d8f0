"""What usually follows the last few tokens, counted over a whole corpus: targets that say more than the one next token.

A short training reads a part of its corpus, once; counting reads all of it in seconds. Each place's target is then the
distribution of a back-off model over contexts of one to four tokens (absolute discounting, Ney et al. 1994), without
the place itself (leave one out), and whatever these contexts do not say stays with the token that really follows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

MOST_TOKENS = 1 << 25  # of a corpus that is counted: 4 GB while it is
_DISCOUNT = 0.75  # of each count
_FOLLOWERS = 8  # of each context that are remembered, the most frequent ones
_MOST_COUNT = (1 << 20) - 1  # as far as followers are ordered by their counts


@dataclass(frozen=True)
class _Order:
    """Contexts of one length that were seen more than once. keys: (contexts,) sorted, the number of the context one
    token shorter · vocabulary + the token before it. words, counts: (contexts, followers); totals: (contexts,). Counts
    are fp32, exact as far as 2²⁴.
    """

    keys: np.ndarray
    words: np.ndarray
    counts: np.ndarray
    totals: np.ndarray


class NGrams:
    """tokens: (n,) ids, at most `MOST_TOKENS` of them. longest: tokens of the longest context."""

    def __init__(self, tokens: np.ndarray, vocab_size: int, longest: int = 4) -> None:
        self.vocab_size = vocab_size
        self.orders: list[_Order] = []
        targets = tokens.astype(np.int64)
        places, contexts = np.arange(len(targets)), np.zeros(len(targets), dtype=np.int64)
        for length in range(1, longest + 1):
            here = places >= length
            places, contexts = places[here], contexts[here]
            keys = contexts * vocab_size + targets[places - length]
            order, contexts, kept = _count(keys, targets[places], vocab_size)
            self.orders.append(order)
            places, contexts = places[kept], contexts[kept]

    @property
    def width(self) -> int:
        """Tokens that a place's target names, the real one included."""
        return len(self.orders) * _FOLLOWERS + 1

    def targets(self, rows: np.ndarray, documents: np.ndarray, real: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """words int64 and weights float32 (rows, time, width), of which the last is the real token and its weight;
        weights sum to one.

        rows: (rows, time) ids that are read; documents: what each belongs to, for contexts end with it; real: (rows,
        time) the tokens that follow. A real token outside the vocabulary is no target: its weights mean nothing.
        """
        n, time = rows.size, rows.shape[1]
        contexts, found, lookups = np.zeros(rows.shape, dtype=np.int64), np.ones(rows.shape, dtype=bool), []
        for length, order in enumerate(self.orders):
            found = found & bool(len(order.keys))
            found[:, :length] = False
            found[:, length:] &= documents[:, length:] == documents[:, : time - length]
            where = np.flatnonzero(found)
            keys = contexts.ravel()[where] * self.vocab_size + rows.ravel()[where - length]
            known = np.searchsorted(order.keys, keys)
            known[known == len(order.keys)] = 0
            right = order.keys[known] == keys
            where, known = where[right], known[right]
            found, contexts = np.zeros_like(found), np.zeros_like(contexts)
            found.ravel()[where], contexts.ravel()[where] = True, known
            lookups.append((order, where, known))
        words, weights = np.zeros((n, self.width), dtype=np.int64), np.zeros((n, self.width), dtype=np.float32)
        rest, following = np.ones(n, dtype=np.float32), real.ravel()
        for number, (order, where, known) in enumerate(reversed(lookups)):
            follow = order.words[known]
            counts = order.counts[known] - (follow == following[where, None])  # without the place itself
            shares = np.maximum(counts - _DISCOUNT, 0) / (order.totals[known, None] - 1)
            columns = slice(number * _FOLLOWERS, (number + 1) * _FOLLOWERS)
            words[where, columns] = follow
            weights[where, columns] = rest[where, None] * shares
            rest[where] *= 1 - shares.sum(1)
        words[:, -1], weights[:, -1] = following, rest
        return words.reshape(*rows.shape, -1), weights.reshape(*rows.shape, -1)


def _count(keys: np.ndarray, targets: np.ndarray, vocab_size: int) -> tuple[_Order, np.ndarray, np.ndarray]:
    """The order of the contexts `keys`; each place's context by its number in it; and which places have one."""
    order = np.argsort(keys * vocab_size + targets)
    keys, targets = keys[order], targets[order]
    begins = _begins(keys)
    pairs = np.flatnonzero(begins | _begins(targets))
    number = np.cumsum(begins) - 1
    totals = np.bincount(number, minlength=1) if len(keys) else np.zeros(0, dtype=np.int64)
    repeated = totals > 1
    renumbered = np.cumsum(repeated) - 1
    counts = np.diff(np.append(pairs, len(keys)))
    words, owner = targets[pairs], number[pairs]
    kept = repeated[owner]
    words, counts, owner = words[kept], counts[kept], renumbered[owner[kept]]
    n_contexts = int(repeated.sum())
    # One key for context, falling count and word: no ties, so that every sort gives the same.
    rank = np.argsort((owner * (_MOST_COUNT + 1) + _MOST_COUNT - np.minimum(counts, _MOST_COUNT)) * vocab_size + words)
    words, counts, owner = words[rank], counts[rank], owner[rank]
    first = np.searchsorted(owner, np.arange(n_contexts))
    place = np.arange(len(owner)) - first[owner] if n_contexts else np.zeros(0, dtype=np.int64)
    top = place < _FOLLOWERS
    table: dict[str, Any] = {}
    for name, values in (("words", words), ("counts", counts)):
        table[name] = np.zeros((n_contexts, _FOLLOWERS), dtype=np.int32)
        table[name][owner[top], place[top]] = values[top]
    made = _Order(keys[np.flatnonzero(begins)[repeated]], totals=totals[repeated].astype(np.float32), **table)
    contexts, known = np.empty(len(keys), dtype=np.int64), np.empty(len(keys), dtype=bool)
    contexts[order], known[order] = renumbered[number], repeated[number]
    return made, contexts, known


def _begins(values: np.ndarray) -> np.ndarray:
    """Where a value differs from the one before it."""
    return np.concatenate([np.ones(min(1, len(values)), dtype=bool), values[1:] != values[:-1]])
