"""Drawing in C: what `athanor.engine.logits` defines, for rows of logits that no setting but the filters changes."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache

import numpy as np

from athanor.base.machine import usable_cores
from athanor.engine.native.library import Filters, NativeError, library

_LEAST_ROWS = 16  # of a thread: about 0.2 ms, several times what handing them over takes


class Kernels:
    """level: of the instructions, as the library numbers them."""

    def __init__(self, found: ctypes.CDLL, level: int) -> None:
        self._library, self._level = found, level

    def draw(
        self, logits: np.ndarray, temperature: float, top_k: int, top_p: float, min_p: float, uniforms: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """(rows, vocabulary) fp32 logits and (rows,) uniforms → (rows,) int64 tokens and their log-probabilities as
        `logprobs` has them. Raises MemoryError.
        """
        rows = np.ascontiguousarray(logits, dtype=np.float32)
        wanted = np.ascontiguousarray(uniforms, dtype=np.float64)
        tokens, logprobs = np.empty(len(rows), dtype=np.int64), np.empty(len(rows), dtype=np.float32)
        filters = Filters(temperature, top_p, min_p, min(top_k, rows.shape[1]))

        def draw_some(some: slice) -> None:
            if self._library.athanor_draw(
                self._level, rows[some].ctypes.data, *rows[some].shape, ctypes.byref(filters),
                wanted[some].ctypes.data, tokens[some].ctypes.data, logprobs[some].ctypes.data,
            ):  # fmt: skip
                raise MemoryError

        _share_out(len(rows), draw_some)
        return tokens, logprobs

    def logprobs(self, logits: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """(rows, vocabulary) fp32 logits and a token in each → (rows,) fp32 natural log-probabilities."""
        rows = np.ascontiguousarray(logits, dtype=np.float32)
        chosen = np.ascontiguousarray(tokens, dtype=np.int64)
        found = np.empty(len(rows), dtype=np.float32)

        def find_some(some: slice) -> None:
            self._library.athanor_logprobs(
                self._level, rows[some].ctypes.data, *rows[some].shape, chosen[some].ctypes.data,
                found[some].ctypes.data,
            )  # fmt: skip

        _share_out(len(rows), find_some)
        return found


def _share_out(rows: int, work: Callable[[slice], None]) -> None:
    """Does `work` for all rows, by as many threads as there is enough to do for."""
    if rows < 2 * _LEAST_ROWS:
        work(slice(0, rows))
        return
    parts = min(usable_cores(), rows // _LEAST_ROWS)
    first, *others = (slice(rows * i // parts, rows * (i + 1) // parts) for i in range(parts))
    given = [_workers().submit(work, part) for part in others]
    work(first)
    for one in given:
        one.result()


@cache
def _workers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(usable_cores(), "drawing")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_workers.cache_clear)  # a child has none of the threads


@cache
def drawing_kernels() -> Kernels | None:
    """None where there is no compiled library."""
    with suppress(NativeError):
        found = library()
        return Kernels(found, found.athanor_best())
    return None
