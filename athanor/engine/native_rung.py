"""The second rung: whole steps of models of the Llama shape in C, with threads of their own.

Each number format has one definition, in which a place's numbers do not depend on what else is in a call; all
instruction sets give the same bits (`native/kernels.h`). Keys and values are kept in fp16, in fp32 where the weights
are, or in 8 bits.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
import weakref
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from athanor.base.errors import AthanorError
from athanor.base.machine import usable_cores
from athanor.engine.native import library
from athanor.engine.native.library import INSTRUCTIONS
from athanor.engine.native.packing import LANES, Format, padded
from athanor.engine.native.weights import NativeWeights
from athanor.engine.rung import Cache, Segment, check_contents
from athanor.models.config import AttentionConfig, ModelConfig
from athanor.models.decoder import Decoder
from athanor.models.gguf.blocks import Blocks, conversions
from athanor.models.position_config import RopeConfig
from athanor.models.rope import rotary_angles

_MOST_ROWS = 256  # of one call into C; longer work is done in several, in order
_KEPT_LOGITS = 64 << 20  # bytes
_ANGLES_AT_A_TIME = 1024  # always the same positions together, so that a table does not depend on how it grew


class NativeRung:
    """A model's kernels, packed weights and cache.

    form: of the matrices. blocks: those of a GGUF file that are computed with as they are
    (`athanor.models.gguf.blocks`). wide: activations have 16 bits instead of 8 where weights have 8 or 4. threads: as
    many as there are cores by default. instructions: the best by default. conversions: what became of blocks in formats
    that the kernels do not know.
    """

    block_size = LANES
    lookback = 0  # such models have no n-gram memory

    def __init__(
        self,
        model: Decoder,
        form: Format = "bf16",
        *,
        blocks: Mapping[str, Blocks] | None = None,
        wide: bool = False,
        cache: Cache = "auto",
        threads: int | None = None,
        instructions: str | None = None,
    ) -> None:
        """Raises NativeError where there are no kernels, ModelError for a model that they cannot execute."""
        self._library = library.library()
        self.conversions = conversions((blocks or {}).values())
        self.weights = NativeWeights(model, form, blocks, wide=wide, cache=cache)
        self.instructions = _instructions(instructions)
        self.threads = threads or usable_cores()
        config, attention = model.config, model.config.layers[0].attention
        assert isinstance(attention, AttentionConfig)
        self.config = config
        width = attention.head_dim + padded(attention.head_dim, LANES)
        each = {"fp32": 4 * width, "fp16": 2 * width, "int8": width + 8}[self.weights.cache]
        self.bytes_per_block = config.n_layers * attention.n_kv_heads * LANES * each
        self._angles = _Angles(config)
        self._cache = np.empty((0, self.bytes_per_block), np.uint8)
        self._logits = np.empty((0, config.vocab_size), np.float32)
        self._lock = threading.Lock()
        context = self._library.athanor_open(
            ctypes.byref(self.weights.structure), self.threads, INSTRUCTIONS.index(self.instructions), _MOST_ROWS
        )
        if not context:
            raise AthanorError("There is not enough memory to execute the model.", "Close other programs.")
        self._context, self._process = ctypes.c_void_p(context), os.getpid()
        weakref.finalize(self, _close, self._library, self._context, self.weights, self._process)

    def allocate(self, blocks: int) -> None:
        """Memory is taken from the system as it is written to. Raises AthanorError when there is not enough."""
        try:
            private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS  # a child that was forked must not write into it
            memory = mmap.mmap(-1, max(1, blocks) * self.bytes_per_block, flags=private)
        except (OSError, ValueError, OverflowError):
            raise AthanorError(
                f"There is no memory for {blocks} blocks of {self.bytes_per_block} bytes.", "Ask for fewer."
            ) from None
        self._cache = np.frombuffer(memory, dtype=np.uint8).reshape(-1, self.bytes_per_block)[:blocks]

    def forward(self, segments: Sequence[Segment]) -> np.ndarray:
        """As `Rung.forward`. Raises AthanorError for ids, places or blocks that do not exist, and in a forked child."""
        if os.getpid() != self._process:
            raise AthanorError(
                "This process was forked after the model was loaded, and has none of its threads.",
                'Load the model in it, or start it with multiprocessing\'s "spawn".',
            )
        self._check(segments)
        with self._lock:
            logits = self._logits_of(sum(segment.wanted for segment in segments))
            done = 0
            for part in _in_parts(segments):
                wanted = sum(segment.wanted for segment in part)
                self._run(part, logits[done : done + wanted])
                done += wanted
            return logits

    def _logits_of(self, rows: int) -> np.ndarray:
        """(rows, vocab_size) fp32, the same memory as before, for fresh pages would cost as much as what is written;
        but not where a long prompt's log-probabilities are asked for.
        """
        if rows <= len(self._logits):
            return self._logits[:rows]
        made = np.empty((rows, self.config.vocab_size), np.float32)
        if made.nbytes <= _KEPT_LOGITS:
            self._logits = made
        return made

    def copy_block(self, source: int, target: int) -> None:
        self._check_blocks(np.array([source, target]))
        self._cache[target] = self._cache[source]

    def read_blocks(self, blocks: Sequence[int]) -> np.ndarray:
        chosen = np.asarray(blocks, dtype=np.int64)
        self._check_blocks(chosen)
        return self._cache[chosen]

    def write_blocks(self, blocks: Sequence[int], data: np.ndarray) -> None:
        chosen = np.asarray(blocks, dtype=np.int64)
        self._check_blocks(chosen)
        check_contents(blocks, data, self.bytes_per_block)
        self._cache[chosen] = data

    def update_weights(self, model: Decoder) -> None:
        with self._lock:
            self.weights.fill(model)

    def _run(self, segments: Sequence[Segment], logits: np.ndarray) -> None:
        rows = blocks = 0
        parts: list[tuple[int, int, int, int]] = []
        wanted: list[int] = []
        for segment in segments:
            count = len(segment.tokens)
            parts.append((rows, count, segment.start, blocks))
            rows += count
            blocks += len(segment.blocks)
            wanted += range(rows - segment.wanted, rows)
        described = np.array(parts, dtype=np.int32)
        tokens = np.concatenate([segment.tokens for segment in segments]).astype(np.int32, copy=False)
        lists = np.concatenate([segment.blocks for segment in segments]).astype(np.int32, copy=False)
        chosen = np.array(wanted, dtype=np.int32)
        cosines, sines = self._angles.up_to(max(segment.start + len(segment.tokens) for segment in segments))
        job = library.Job(
            tokens.ctypes.data, lists.ctypes.data, chosen.ctypes.data, described.ctypes.data, cosines.ctypes.data,
            sines.ctypes.data, self._cache.ctypes.data, logits.ctypes.data, self.bytes_per_block, rows, len(segments),
            len(wanted), cosines.shape[1],
        )  # fmt: skip
        self._library.athanor_forward(self._context, ctypes.byref(job))

    def _check(self, segments: Sequence[Segment]) -> None:
        for segment in segments:
            count = len(segment.tokens)
            end = segment.start + count
            if segment.tokens.ndim != 1 or not count or segment.start < 0 or end > self.config.max_seq_len:
                raise AthanorError(
                    f"Places {segment.start} to {end - 1} cannot be computed.",
                    f"The model has the places 0 to {self.config.max_seq_len - 1}.",
                )
            if not 0 <= segment.wanted <= count:
                raise AthanorError(f"{segment.wanted} logits are wanted of {count} places.")
            if segment.blocks.shape != (-(-end // self.block_size),):
                taken = len(segment.blocks)
                raise AthanorError(f"{end} places take {-(-end // self.block_size)} blocks, not {taken}.")
        # All at once: a look at each segment's would take longer than a small model's step.
        tokens = np.concatenate([segment.tokens for segment in segments])
        if tokens.min() < 0 or tokens.max() >= self.config.vocab_size:
            raise AthanorError(
                f"The ids {tokens.min()} to {tokens.max()} are not all tokens.",
                f"The model has the ids 0 to {self.config.vocab_size - 1}.",
            )
        self._check_blocks(np.concatenate([segment.blocks for segment in segments]))

    def _check_blocks(self, blocks: np.ndarray) -> None:
        if len(blocks) and (blocks.min() < 0 or blocks.max() >= len(self._cache)):
            raise AthanorError(
                f"The blocks {blocks.min()} to {blocks.max()} are not all there.", f"{len(self._cache)} were allocated."
            )


class _Angles:
    """Cosines and sines of the places so far, (places, angles) fp32."""

    def __init__(self, config: ModelConfig) -> None:
        self._rope, self._dim = RopeConfig(), 2
        for layer in config.layers:
            if isinstance(layer.attention, AttentionConfig) and isinstance(layer.attention.position, RopeConfig):
                self._rope, self._dim = layer.attention.position, layer.attention.rotary_dim
        self._tables = np.empty((2, 0, self._dim // 2), np.float32)

    def up_to(self, places: int) -> tuple[np.ndarray, np.ndarray]:
        while self._tables.shape[1] < places:
            first = self._tables.shape[1]
            positions = torch.arange(first, first + _ANGLES_AT_A_TIME)[None]
            tables = rotary_angles(positions, self._dim, self._rope)
            more = np.stack([table.view(_ANGLES_AT_A_TIME, -1).numpy() for table in tables])
            self._tables = np.concatenate([self._tables, more], axis=1)
        return self._tables[0], self._tables[1]


def _instructions(wanted: str | None) -> str:
    best = library.best_instructions()
    if wanted is None:
        return best
    known = INSTRUCTIONS[: INSTRUCTIONS.index(best) + 1]
    if wanted not in known:
        raise AthanorError(f"The instructions {wanted!r} are not there.", f"This processor has: {', '.join(known)}.")
    return wanted


def _in_parts(segments: Sequence[Segment]) -> list[list[Segment]]:
    """The same work in calls of at most so many rows; a segment may go on in the next."""
    if sum(len(segment.tokens) for segment in segments) <= _MOST_ROWS:
        return [list(segments)]
    parts: list[list[Segment]] = [[]]
    room = _MOST_ROWS
    for segment in segments:
        start, tokens = segment.start, segment.tokens
        while len(tokens):
            now, later = tokens[:room], tokens[room:]
            places = -(-(start + len(now)) // LANES)
            wanted = max(0, segment.wanted - len(later))
            parts[-1].append(Segment(now, start, segment.blocks[:places], min(wanted, len(now))))
            start, tokens, room = start + len(now), later, room - len(now)
            if not room:
                parts.append([])
                room = _MOST_ROWS
    return [part for part in parts if part]


def _close(found: ctypes.CDLL, context: ctypes.c_void_p, weights: NativeWeights, process: int) -> None:
    """weights: kept until here, because the context points to them. process: whose threads are waited for."""
    if os.getpid() == process:
        found.athanor_close(context)
