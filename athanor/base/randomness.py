"""Randomness as a function, not a stream: every draw is keyed by (seed, purpose, indices) and can be repeated anywhere.

Nothing in Athanor draws from a shared generator, so resuming, reordering or batching differently cannot change a
number. Bulk draws use numpy's Philox under a hashed key; per-token sampling uses SplitMix64 (Steele et al. 2014) as a
vectorised counter-based hash.
"""

from __future__ import annotations

import hashlib
from operator import index

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def key(seed: int, *purpose: str | int) -> int:
    """A 128-bit key for `seed` and a path of names and indices, e.g. key(1, "pretrain", "order", epoch)."""
    parts = (f"str:{part}" if isinstance(part, str) else f"int:{index(part)}" for part in purpose)
    text = "\x1f".join([str(index(seed)), *parts])  # an index means the same as an int and as a numpy integer
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "little")


def subseed(seed: int, *purpose: str | int) -> int:
    """A 31-bit seed of its own for this purpose, for what takes a seed and keys further draws by it."""
    return key(seed, *purpose) & 0x7FFFFFFF


def generator(seed: int, *purpose: str | int) -> np.random.Generator:
    """A numpy generator of its own for this purpose."""
    return np.random.Generator(np.random.Philox(key=key(seed, *purpose)))


def _mix(state: np.ndarray) -> np.ndarray:
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def uniforms(keys: np.ndarray, counters: np.ndarray) -> np.ndarray:
    """Independent uniforms in [0, 1), one for each (key, counter) pair.

    keys, counters: broadcastable integer arrays (keys as uint64); returns float64 of the broadcast shape.
    """
    with np.errstate(over="ignore"):
        state = _mix(np.asarray(keys, dtype=np.uint64) + _GOLDEN)
        state = _mix(state + np.asarray(counters, dtype=np.uint64) * _GOLDEN + _GOLDEN)
    return (state >> np.uint64(11)).astype(np.float64) * 2.0**-53


def request_key(seed: int, *purpose: str | int) -> np.uint64:
    """A 64-bit key for `uniforms`."""
    return np.uint64(key(seed, *purpose) & 0xFFFFFFFFFFFFFFFF)
