"""Terms and n-gram hashes: what repetition, decontamination and leak checks compare.

A term is one Han character or a run of other letters and digits, lower-cased, so that the same n-gram code serves
English words, Chinese characters and text that mixes them. An n-gram's hash is a polynomial in the 64-bit BLAKE2b
hashes of its terms, taken from prefix sums: all n-grams of a document cost a few vector operations. Hashes are the same
in every process and on every machine (Python's own `hash` is salted).
"""

from __future__ import annotations

import re
from functools import lru_cache
from hashlib import blake2b

import numpy as np

HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_ASCII_TERM = re.compile(r"[a-z0-9_]+")
_TERM = re.compile(rf"[{HAN}]|[^\W{HAN}]+")
_BASE = 0x9E3779B97F4A7C15  # odd, so that its powers have inverses modulo 2**64
_MASK = (1 << 64) - 1


class _TermHashes(dict[str, int]):
    """Hash of each term, remembered; forgets everything when it has grown to a million terms."""

    def __missing__(self, term: str) -> int:
        if len(self) >= 1_000_000:
            self.clear()
        value = int.from_bytes(blake2b(term.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
        self[term] = value
        return value


_term_hashes = _TermHashes()


@lru_cache(maxsize=4)  # the rules look at one document after the other
def terms(text: str) -> list[str]:
    """Terms of the text in order. The list is shared: do not change it."""
    lower = text.lower()
    return (_ASCII_TERM if lower.isascii() else _TERM).findall(lower)


@lru_cache(maxsize=4)
def term_hashes(text: str) -> np.ndarray:
    """(terms,) uint64. Shared: do not change it."""
    found = terms(text)
    return np.fromiter(map(_term_hashes.__getitem__, found), dtype=np.uint64, count=len(found))


def _powers(base: int, count: int) -> np.ndarray:
    result = np.full(count, base, dtype=np.uint64)
    result[0] = 1
    return np.multiply.accumulate(result)


@lru_cache(maxsize=1)
def _tables(size: int) -> tuple[np.ndarray, np.ndarray]:
    return _powers(_BASE, size), _powers(pow(_BASE, -1, 1 << 64), size)


@lru_cache(maxsize=4)
def _prefix_sums(text: str) -> np.ndarray:
    hashes = term_hashes(text)
    powers, _ = _tables(max(1 << 13, 1 << len(hashes).bit_length()))
    sums = np.zeros(len(hashes) + 1, dtype=np.uint64)
    np.cumsum(hashes * powers[: len(hashes)], out=sums[1:])
    return sums


def gram_hashes(text: str, n: int) -> np.ndarray:
    """(max(0, terms − n + 1),) uint64: the hash of every n-gram of terms, in order."""
    sums = _prefix_sums(text)
    count = len(sums) - n
    if count <= 0:
        return np.empty(0, dtype=np.uint64)
    _, inverses = _tables(max(1 << 13, 1 << len(sums).bit_length()))
    salt = np.uint64((n * _BASE) & _MASK)  # n-grams of different lengths never meet
    return (sums[n:] - sums[:-n]) * inverses[:count] + salt
