"""The border between the engine, which decides what is computed next, and what computes it.

A rung executes a model over a paged cache of keys and values. It owns the cache's memory and layout; the engine
decides which sequence has which block, and block numbers are the only thing that they share. There are several rungs,
from stock torch operations to native code for whole steps, and all keep one law: the logits of a place are bit-equal
whatever else is in the call, however the sequence was cut into segments, and wherever its blocks lie.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from athanor.base.errors import ModelError
from athanor.models.decoder import Decoder

Cache = Literal["auto", "int8"]
"""Number format of keys and values: as a rung has it, or 8 bits with a scale for each place and head."""


_NOTHING = np.empty(0, dtype=np.int32)


class Segment(NamedTuple):
    """Some consecutive tokens of one sequence, to be computed now.

    tokens: (n,) int32, n at least 1. start: the place of the first in its sequence; all places before it are in the
    cache. blocks: (ceil((start + n) / block_size),) int32, the sequence's blocks in order, into which the rung writes
    the keys and values of the n tokens; for places that all windows have passed, any block of the sequence. wanted: how
    many of the last places need logits (0 while a prompt is read, 1 for the next token, k + 1 to verify k drafted
    tokens, n for the log-probabilities of a prompt). before: the rung's `lookback` last tokens before them, or all
    where there are fewer. source: for an encoder–decoder, what the rung's `encode` gave.
    """

    tokens: np.ndarray
    start: int
    blocks: np.ndarray
    wanted: int
    before: np.ndarray = _NOTHING
    source: Any = None


class Rung(Protocol):
    """What executes a model. block_size: places a block holds. lookback: tokens before a segment that it is told of."""

    block_size: int
    lookback: int
    bytes_per_block: int

    def allocate(self, blocks: int) -> None:
        """Makes room for the keys and values of `blocks` blocks; called once, before anything is computed."""
        ...

    def forward(self, segments: Sequence[Segment]) -> np.ndarray:
        """(sum of wanted, vocab_size) float32 logits, in the order of the segments and of their places.

        Each sequence appears at most once. The array may be reused by the next call.
        """
        ...

    def copy_block(self, source: int, target: int) -> None:
        """Copies one block's keys and values, so that a shared block can be written by one of its owners."""
        ...

    def read_blocks(self, blocks: Sequence[int]) -> np.ndarray:
        """(len(blocks), bytes_per_block) uint8: the blocks' contents, to be kept elsewhere."""
        ...

    def write_blocks(self, blocks: Sequence[int], data: np.ndarray) -> None:
        """Puts what `read_blocks` returned into other blocks of the same rung. Raises ModelError for anything else."""
        ...

    def update_weights(self, model: Decoder) -> None:
        """Takes over the weights of `model`, of the same configuration; what is in the cache becomes stale."""
        ...


def check_finite(weights: Iterable[tuple[str, Tensor]]) -> None:
    """Raises ModelError for weights that are not numbers."""
    for name, numbers in weights:
        if not torch.isfinite(numbers).all():
            raise ModelError(
                f"{name} has values that are not numbers.", "Training has diverged, or the file is damaged."
            )


def check_contents(blocks: Sequence[int], data: np.ndarray, bytes_per_block: int) -> None:
    """Raises ModelError for what is not the contents of so many blocks."""
    shape = len(blocks), bytes_per_block
    if data.shape != shape or data.dtype != np.uint8:
        raise ModelError(
            f"Contents of {len(blocks)} blocks were to be written, but these are {data.dtype} of shape {data.shape}.",
            f"Give what read_blocks returned: uint8 of shape {shape}, of the same model and cache.",
        )
