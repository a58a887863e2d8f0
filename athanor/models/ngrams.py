"""What usually follows the last few tokens, counted over a whole corpus: a table, and what it says about any text.

A short training reads a part of its corpus, once; counting reads all of it in seconds. What follows is the distribution
of a back-off model over contexts of one to four tokens (absolute discounting, Ney et al. 1994). For text that was
counted itself, each place is looked up without its own count (leave one out), so that it reads as text from elsewhere
would. What is looked up was seen at least twice; with what is rarer the table would be three times as large.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from athanor.base.errors import ModelError
from athanor.base.files import atomic_path

MOST_TOKENS = 1 << 25  # of a corpus that is counted: 4 GB while it is
FOLLOWERS = 8  # of each context that are remembered, the most frequent ones
LONGEST = 4  # tokens of the longest context, unless said otherwise
_LEAST = 2  # times that a follower was seen
_DISCOUNT = 0.75  # of each count
_MOST_COUNT = (1 << 20) - 1  # as far as followers are ordered by their counts
_PARTS = {"keys": np.int64, "followers": np.uint8, "totals": np.int32, "words": np.int32, "counts": np.int32}
"""Of each order in a file."""


@dataclass(frozen=True)
class _Order:
    """Contexts of one length. keys: (contexts,) sorted, the number of the context one token shorter · vocabulary + the
    token before it. starts: (contexts + 1,), where the followers of each begin in words and counts, the most frequent
    first. totals: (contexts,), how often each was seen. Counts are fp32, exact as far as 2²⁴.
    """

    keys: np.ndarray
    starts: np.ndarray
    words: np.ndarray
    counts: np.ndarray
    totals: np.ndarray


@dataclass(frozen=True)
class _Found:
    """Contexts of one length at some places. where: (places,), their numbers; words, counts: (places, followers), 0 for
    none; totals: (places, 1).
    """

    where: np.ndarray
    words: np.ndarray
    counts: np.ndarray
    totals: np.ndarray


class NGrams:
    """Looks tokens up; it never changes, so copies of a model share it."""

    def __init__(self, vocab_size: int, orders: list[_Order]) -> None:
        self.vocab_size, self.orders = vocab_size, orders

    @classmethod
    def count(cls, tokens: np.ndarray, vocab_size: int, longest: int = LONGEST) -> NGrams:
        """tokens: (n,) ids, at most `MOST_TOKENS` of them. longest: tokens of the longest context."""
        orders = []
        targets = tokens.astype(np.int64)
        places, contexts = np.arange(len(targets)), np.zeros(len(targets), dtype=np.int64)
        for length in range(1, longest + 1):
            here = places >= length
            places, contexts = places[here], contexts[here]
            keys = contexts * vocab_size + targets[places - length]
            order, contexts, kept = _count(keys, targets[places], vocab_size)
            orders.append(order)
            places, contexts = places[kept], contexts[kept]
        return cls(vocab_size, orders)

    def __deepcopy__(self, memo: object) -> NGrams:
        return self

    @property
    def longest(self) -> int:
        """Tokens of the longest context."""
        return len(self.orders)

    @property
    def width(self) -> int:
        """Followers of a place, `FOLLOWERS` for each length of context."""
        return self.longest * FOLLOWERS

    def look_up(self, rows: np.ndarray, documents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What may follow each place of a text from elsewhere: words int64 and their probabilities float32, both (rows,
        time, width). What follows the longest context stands first; a probability of zero means nothing; together they
        are at most one.

        rows: (rows, time) ids that are read; documents: what each belongs to, for contexts end with it.
        """
        found = self._find(rows, documents)
        shape = (*rows.shape, self.width)
        return self._words(found, rows.size).reshape(shape), self._shares(found, rows.size, _LEAST).reshape(shape)

    def look_up_counted(
        self, rows: np.ndarray, documents: np.ndarray, real: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The same of text that was counted, without its own counts; and further probabilities of the same words, which
        count what was seen once: as targets these are better. real: (rows, time) the tokens that follow.
        """
        found, following = self._find(rows, documents), real.ravel()
        shape = (*rows.shape, self.width)
        shares, targets = (self._shares(found, rows.size, least, following).reshape(shape) for least in (_LEAST, 1))
        return self._words(found, rows.size).reshape(shape), shares, targets

    def _find(self, rows: np.ndarray, documents: np.ndarray) -> list[_Found]:
        """The contexts of every place, the longest first."""
        time = rows.shape[1]
        contexts, there, found = np.zeros(rows.shape, dtype=np.int64), np.ones(rows.shape, dtype=bool), []
        for length, order in enumerate(self.orders):
            there = there & bool(len(order.keys))
            there[:, :length] = False
            there[:, length:] &= documents[:, length:] == documents[:, : time - length]
            where = np.flatnonzero(there)
            keys = contexts.ravel()[where] * self.vocab_size + rows.ravel()[where - length]
            known = np.searchsorted(order.keys, keys)
            known[known == len(order.keys)] = 0
            right = order.keys[known] == keys
            where, known = where[right], known[right]
            there, contexts = np.zeros_like(there), np.zeros_like(contexts)
            there.ravel()[where], contexts.ravel()[where] = True, known
            places = order.starts[known, None] + np.arange(FOLLOWERS)
            exists = places < order.starts[known + 1, None]
            places[~exists] = 0
            counts = order.counts[places] * exists
            found.append(_Found(where, order.words[places], counts, order.totals[known, None]))
        return found[::-1]

    def _words(self, found: list[_Found], n: int) -> np.ndarray:
        words = np.zeros((n, self.width), dtype=np.int64)
        for number, one in enumerate(found):
            words[one.where, number * FOLLOWERS : (number + 1) * FOLLOWERS] = one.words
        return words

    def _shares(self, found: list[_Found], n: int, least: int, following: np.ndarray | None = None) -> np.ndarray:
        """least: followers that were seen less often say nothing. following: (n,), what the text itself counted."""
        shares, rest = np.zeros((n, self.width), dtype=np.float32), np.ones(n, dtype=np.float32)
        for number, one in enumerate(found):
            counts, totals = one.counts, one.totals
            if following is not None:
                counts, totals = counts - (one.words == following[one.where, None]), totals - 1
            here = np.where(counts >= least, counts - _DISCOUNT, 0) / np.maximum(totals, 1)
            shares[one.where, number * FOLLOWERS : (number + 1) * FOLLOWERS] = rest[one.where, None] * here
            rest[one.where] *= 1 - here.sum(1)
        return shares

    def pruned(self) -> NGrams:
        """Without what was seen once: the same to `look_up`, and a third as large."""
        orders, numbers = [], np.zeros(1, dtype=np.int64)
        for order in self.orders:
            often = order.counts >= _LEAST
            followers = np.add.reduceat(np.append(often, False), order.starts[:-1], dtype=np.int64)
            kept = followers > 0
            keys, starts = order.keys[kept], np.append(0, np.cumsum(followers[kept]))
            keys = numbers[keys // self.vocab_size] * self.vocab_size + keys % self.vocab_size
            orders.append(_Order(keys, starts, order.words[often], order.counts[often], order.totals[kept]))
            numbers = np.cumsum(kept) - 1
        return NGrams(self.vocab_size, orders)

    def save(self, path: Path) -> None:
        arrays = {}
        for number, order in enumerate(self.orders):
            values = (order.keys, np.diff(order.starts), order.totals, order.words, order.counts)
            for (name, dtype), value in zip(_PARTS.items(), values, strict=True):
                arrays[f"{number}.{name}"] = value.astype(dtype)
        with atomic_path(path) as temporary:  # the library's own files only their owner may read
            temporary.write_bytes(save(arrays, metadata={"vocab_size": str(self.vocab_size)}))

    @classmethod
    def load(cls, path: Path, vocab_size: int, longest: int) -> NGrams:
        """Raises ModelError for a file that is missing, damaged, or of another model."""
        try:
            with safe_open(path, framework="numpy") as file:
                written = (file.metadata() or {}).get("vocab_size")
                if written != str(vocab_size) or len(file.keys()) != longest * len(_PARTS):
                    raise ModelError(f"{path} counts n-grams for another model.", "Copy the folder as a whole.")
                orders, contexts = [], 1
                for number in range(longest):
                    parts = {name: file.get_tensor(f"{number}.{name}") for name in _PARTS}
                    orders.append(_checked(parts, vocab_size, contexts))
                    contexts = len(orders[-1].keys)
        except FileNotFoundError:
            raise ModelError(f"{path} is missing: the n-grams that this model looks up.") from None
        except (SafetensorError, OSError, ValueError, KeyError) as error:
            raise ModelError(f"{path} is damaged ({error}).", "Copy it again; it may be cut short.") from None
        return cls(vocab_size, orders)


def _checked(parts: Mapping[str, np.ndarray], vocab_size: int, shorter: int) -> _Order:
    """shorter: contexts of the order before. Raises ValueError for what counting cannot give."""
    if any(parts[name].dtype != dtype or parts[name].ndim != 1 for name, dtype in _PARTS.items()):
        raise ValueError("a table of another kind")
    keys, followers, totals, words, counts = (parts[name] for name in _PARTS)
    starts = np.append(0, np.cumsum(followers, dtype=np.int64))
    if not len(keys) == len(followers) == len(totals) or not len(words) == len(counts) == starts[-1]:
        raise ValueError("tables of unequal length")
    if len(keys) and not (
        (np.diff(keys) > 0).all()
        and keys[0] >= 0
        and keys[-1] < shorter * vocab_size
        and followers.max() <= FOLLOWERS
        and words.min() >= 0
        and words.max() < vocab_size
        and counts.min() > 0
        and (np.add.reduceat(counts, starts[:-1]) <= totals).all()
    ):
        raise ValueError("counts that cannot be")
    return _Order(keys, starts, words, counts.astype(np.float32), totals.astype(np.float32))


def _count(keys: np.ndarray, targets: np.ndarray, vocab_size: int) -> tuple[_Order, np.ndarray, np.ndarray]:
    """The order of the contexts `keys`; each place's context by its number in it; and which places have one."""
    order = np.argsort(keys * vocab_size + targets)
    keys, targets = keys[order], targets[order]
    begins = _begins(keys)
    pairs = np.flatnonzero(begins | _begins(targets))
    number = np.cumsum(begins) - 1
    totals = np.bincount(number) if len(keys) else np.zeros(0, dtype=np.int64)
    counts, words, owner = np.diff(np.append(pairs, len(keys))), targets[pairs], number[pairs]
    known = totals > 1
    renumbered = np.cumsum(known) - 1
    kept = known[owner]
    counts, words, owner = counts[kept], words[kept], renumbered[owner[kept]]
    # One key for context, falling count and word: no ties, so that every sort gives the same.
    rank = np.argsort((owner * (_MOST_COUNT + 1) + _MOST_COUNT - np.minimum(counts, _MOST_COUNT)) * vocab_size + words)
    counts, words, owner = counts[rank], words[rank], owner[rank]
    first = np.flatnonzero(_begins(owner))
    followers = np.diff(np.append(first, len(owner)))
    top = np.arange(len(owner)) - np.repeat(first, followers) < FOLLOWERS
    starts = np.append(0, np.cumsum(np.minimum(followers, FOLLOWERS)))
    made = _Order(
        keys[np.flatnonzero(begins)[known]],
        starts,
        words[top].astype(np.int32),
        counts[top].astype(np.float32),
        totals[known].astype(np.float32),
    )
    contexts, has_one = np.empty(len(keys), dtype=np.int64), np.empty(len(keys), dtype=bool)
    contexts[order], has_one[order] = renumbered[number], known[number]
    return made, contexts, has_one


def _begins(values: np.ndarray) -> np.ndarray:
    """Where a value differs from the one before it."""
    return np.concatenate([np.ones(min(1, len(values)), dtype=bool), values[1:] != values[:-1]])
