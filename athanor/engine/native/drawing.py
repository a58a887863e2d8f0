"""Drawing in C: what `athanor.engine.logits` defines, for rows of logits that no setting but the filters changes."""

from __future__ import annotations

import ctypes
from contextlib import suppress
from functools import cache

import numpy as np

from athanor.engine.native.library import Filters, NativeError, library


class Kernels:
    """level: of the instructions, as the library numbers them."""

    def __init__(self, found: ctypes.CDLL, level: int) -> None:
        self._library, self._level = found, level

    def draw(
        self, logits: np.ndarray, temperature: float, top_k: int, top_p: float, min_p: float, uniforms: np.ndarray
    ) -> np.ndarray:
        """(rows, vocabulary) fp32 logits and (rows,) uniforms → (rows,) int64 tokens. Raises MemoryError."""
        rows = np.ascontiguousarray(logits, dtype=np.float32)
        wanted = np.ascontiguousarray(uniforms, dtype=np.float64)
        tokens = np.empty(len(rows), dtype=np.int64)
        filters = Filters(temperature, top_p, min_p, min(top_k, rows.shape[1]))
        if self._library.athanor_draw(
            self._level, rows.ctypes.data, *rows.shape, ctypes.byref(filters), wanted.ctypes.data, tokens.ctypes.data
        ):
            raise MemoryError
        return tokens

    def logprobs(self, logits: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """(rows, vocabulary) fp32 logits and a token in each → (rows,) fp32 natural log-probabilities."""
        rows = np.ascontiguousarray(logits, dtype=np.float32)
        chosen = np.ascontiguousarray(tokens, dtype=np.int64)
        found = np.empty(len(rows), dtype=np.float32)
        self._library.athanor_logprobs(
            self._level, rows.ctypes.data, *rows.shape, chosen.ctypes.data, found.ctypes.data
        )
        return found


@cache
def drawing_kernels() -> Kernels | None:
    """None where there is no compiled library."""
    with suppress(NativeError):
        found = library()
        return Kernels(found, found.athanor_best())
    return None
