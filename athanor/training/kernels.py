"""What a training step does besides large products, in C: attention over packed documents, rotary positions, RMSNorm,
gated feed-forward layers, the softmax of the cross-entropy, and the walks of Muon and of the gradients' norm.

On a CPU torch's attention computes all pairs of a row and masks most of them away, and its pointwise operations walk
memory once each. Here a query attends to its own document only, and each of the others is one walk. All is computed in
fp32 and rounded once, in one order of summation whatever the number of threads and the instruction set; but attention
in bf16 goes through AMX where there is one, with weights and slopes of scores rounded as its products ask. The work is
done by torch's own threads, so it needs GNU's OpenMP, as torch has on Linux; elsewhere torch's operations do it.
`kernel_layers` puts it around the layers of a model.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from contextlib import suppress
from ctypes import Structure, byref, c_float, c_int32, c_int64, c_void_p
from functools import cache

import torch
from torch import Tensor

from athanor.engine.native.library import NativeError, library

LANES, _ROWS_TOGETHER, _TOGETHER = 16, 64, 1 << 14
_ATTEND, _NORM, _GATE, _TURN, _BLEND, _MOVE, _SQUARE, _TRANSPOSE, _ADD, _DIFFERENTIATE = range(10)
_IN_TILES = (32, 64, 96, 128)  # sizes of heads
TYPES = (torch.float32, torch.bfloat16)


class _Attention(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("queries", "keys", "values", "first", "last", "out", "logsumexp")),
        *((name, c_void_p) for name in ("out_gradient", "query_gradient", "key_gradient", "value_gradient")),
        ("scale", c_float),
        *((name, c_int32) for name in ("narrow", "batch", "time", "heads", "kv_heads", "head_dim", "in_tiles")),
    )


class _Norm(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("x", "gain", "out", "scale")),
        *((name, c_void_p) for name in ("gradient", "past", "x_gradient", "gain_gradients")),
        ("rows", c_int64),
        ("epsilon", c_float),
        *((name, c_int32) for name in ("size", "narrow", "narrow_out")),
    )


class _Added(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("x", "part", "out")),
        ("size", c_int64),
        *((name, c_int32) for name in ("narrow", "unused")),
    )


class _Gate(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("gate", "up", "out", "gradient", "gate_gradient", "up_gradient")),
        ("size", c_int64),
        *((name, c_int32) for name in ("narrow", "unused")),
    )


class _Turn(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("x", "cosine", "sine", "out")),
        ("rows", c_int64),
        *((name, c_int32) for name in ("heads", "head_dim", "half", "narrow", "back", "unused")),
    )


class _Blended(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("gradient", "momentum", "update")),
        ("size", c_int64),
        ("kept", c_float),
        ("unused", c_int32),
    )


class _Moved(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("directions", "scales", "weights")),
        ("rows", c_int64),
        *((name, c_float) for name in ("rate", "decay")),
        *((name, c_int32) for name in ("size", "narrow", "cautious", "unused")),
    )


class _Squared(Structure):
    _fields_ = (*((name, c_void_p) for name in ("x", "sums")), ("size", c_int64))


class _Transposed(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("x", "out")),
        *((name, c_int64) for name in ("rows", "stride")),
        *((name, c_int32) for name in ("size", "added")),
    )


class _Labelled(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("logits", "labels", "shares", "losses")),
        *((name, c_int64) for name in ("rows", "stride")),
        *((name, c_int32) for name in ("size", "width", "narrow", "unused")),
    )


class Kernels:
    """level: of the instructions, as the library numbers them. tiles: attention in bf16 goes through AMX. Tensors are
    contiguous, fp32 or bf16.
    """

    def __init__(self, found: ctypes.CDLL, level: int, tiles: bool = False) -> None:
        self._train, self._level, self._tiles = found.athanor_train, level, tiles
        self._parallel = ctypes.cast(ctypes.CDLL(None).GOMP_parallel, c_void_p)

    @staticmethod
    def takes(*tensors: Tensor) -> bool:
        """Whether these are of the kind that is computed here."""
        return len({x.dtype for x in tensors}) == 1 and all(
            x.device.type == "cpu" and x.dtype in TYPES and x.stride(-1) == 1 and x.shape[-1] % LANES == 0
            for x in tensors
        )

    def _run(self, what: int, job: Structure) -> None:
        if self._train(self._parallel, torch.get_num_threads(), self._level, what, byref(job)):
            raise MemoryError

    def attend(
        self, queries: Tensor, keys: Tensor, values: Tensor, spans: tuple[Tensor, Tensor], scale: float
    ) -> tuple[Tensor, Tensor]:
        """queries (batch, time, heads, head_dim), keys and values (batch, time, kv_heads, head_dim), spans as
        `Where.spans` has them → what is mixed, and the scores' log-sum-exp (batch, heads, time).
        """
        batch, time, heads, _ = queries.shape
        out, logsumexp = torch.empty_like(queries), queries.new_empty(batch, heads, time, dtype=torch.float32)
        self._attend(scale, queries, keys, values, *spans, out, logsumexp)
        return out, logsumexp

    def attend_back(self, gradient: Tensor, given: Sequence[Tensor], scale: float) -> tuple[Tensor, Tensor, Tensor]:
        """given: queries, keys, values, the two of the spans, out and log-sum-exp of `attend`."""
        queries, keys, values = (torch.empty_like(one) for one in given[:3])
        self._attend(scale, *given, gradient, queries, keys, values)
        return queries, keys, values

    def _attend(self, scale: float, *tensors: Tensor) -> None:
        """tensors: as the structure has them, at least as far as the log-sum-exp."""
        queries, keys = tensors[:2]
        job = _Attention(*_places(*tensors), scale=scale, narrow=_is_narrow(queries))
        job.batch, job.time, job.heads, job.head_dim = queries.shape
        job.kv_heads = keys.shape[2]
        job.in_tiles = self._tiles and job.narrow and job.head_dim in _IN_TILES
        self._run(_ATTEND, job)

    def norm(self, x: Tensor, gain: Tensor, epsilon: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """x (…, size), gain (size,) fp32 → the normed in `dtype`, and what each row was multiplied with."""
        out, scale = torch.empty_like(x, dtype=dtype), x.new_empty(x.shape[:-1], dtype=torch.float32)
        self._run(_NORM, _norm(x, gain, out, scale, epsilon=epsilon))
        return out, scale

    def norm_back(
        self, gradient: Tensor, x: Tensor, gain: Tensor, scale: Tensor, past: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """past: a gradient that x has besides."""
        x_gradient, size = torch.empty_like(x), x.shape[-1]
        gains = gain.new_empty(-(-x.numel() // (size * _ROWS_TOGETHER)), size)
        self._run(_NORM, _norm(x, gain, gradient, scale, gradient, past, x_gradient, gains))
        return x_gradient, gains.sum(0)

    def add(self, x: Tensor, part: Tensor) -> Tensor:
        """x + part, of the same shape, fp32 and either."""
        out = torch.empty_like(x)
        self._run(_ADD, _Added(*_places(x, part, out), size=x.numel(), narrow=_is_narrow(part)))
        return out

    def gate(self, gate: Tensor, up: Tensor) -> Tensor:
        """silu(gate) · up"""
        out = torch.empty_like(gate)
        self._run(_GATE, _Gate(*_places(gate, up, out), size=gate.numel(), narrow=_is_narrow(gate)))
        return out

    def gate_back(
        self, gradient: Tensor, gate: Tensor, up: Tensor, again: bool
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """The gradients of gate and up; again: and what came out of them."""
        gradients, out = (torch.empty_like(gate), torch.empty_like(up)), torch.empty_like(gate) if again else None
        places = _places(gate, up, out, gradient, *gradients)
        self._run(_GATE, _Gate(*places, size=gate.numel(), narrow=_is_narrow(gate)))
        return *gradients, out

    def turn(self, x: Tensor, cosine: Tensor, sine: Tensor, back: bool = False) -> Tensor:
        """x (batch, time, heads, head_dim), the angles (batch, time, 1, half) fp32."""
        out, (batch, time, heads, head_dim) = torch.empty_like(x), x.shape
        job = _Turn(*_places(x, cosine, sine, out), rows=batch * time, heads=heads, head_dim=head_dim)
        job.half, job.narrow, job.back = cosine.shape[-1], _is_narrow(x), back
        self._run(_TURN, job)
        return out

    def blend(self, gradient: Tensor, momentum: Tensor, update: Tensor, kept: float) -> None:
        """momentum moves to the gradient by 1 − kept, and update becomes the gradient moved to it by kept; all fp32."""
        self._run(_BLEND, _Blended(*_places(gradient, momentum, update), size=gradient.numel(), kept=kept))

    def move(
        self, weight: Tensor, directions: Tensor, scales: Tensor, rate: float, decay: float, cautious: bool
    ) -> None:
        """weight (…, size) fp32 goes against rate times directions · scales (…, 1) and its decay; where cautious, only
        weights decay that the step would let shrink.
        """
        job = _Moved(*_places(directions, scales, weight), rows=weight.numel() // weight.shape[-1], rate=rate)
        job.decay, job.size, job.narrow, job.cautious = decay, weight.shape[-1], _is_narrow(directions), cautious
        self._run(_MOVE, job)

    def squares(self, x: Tensor) -> Tensor:
        """The sum of the squares of fp32 x, in fp64."""
        sums = x.new_empty(-(-x.numel() // _TOGETHER), dtype=torch.float64)
        self._run(_SQUARE, _Squared(*_places(x, sums), size=x.numel()))
        return sums.sum()

    def transpose(self, x: Tensor, added_to: Tensor | None = None) -> Tensor:
        """bf16 (rows, columns) → (columns, rows); or it is added to a tensor of fp32, which is given back."""
        rows, columns = x.shape
        out, stride = added_to, rows
        if out is None:
            stride += 32  # rows that are a power of two apart would all want the same places of a cache
            whole = x.new_empty(columns, stride)
            whole[:, rows:] = 0  # oneDNN multiplies what stands there with zeros, and NaN would stay
            out = whole[:, :rows]
        job = _Transposed(*_places(x, out), rows=rows, stride=stride, size=columns, added=added_to is not None)
        self._run(_TRANSPOSE, job)
        return out

    def differentiate(self, logits: Tensor, labels: Tensor, shares: Tensor | None) -> Tensor:
        """logits (rows, size), labels (rows, width) int64, shares fp32 → (rows,) cross-entropies; the logits become
        their gradient.
        """
        losses, (rows, size) = logits.new_empty(len(logits), dtype=torch.float32), logits.shape
        if labels.dtype != torch.int64 or labels.dim() != 2 or len(labels) != rows:
            raise ValueError(f"labels of {tuple(labels.shape)} and {labels.dtype} for {rows} rows; int64 (rows, width)")
        if shares is not None and shares.shape != labels.shape:
            raise ValueError(f"shares of {tuple(shares.shape)} for labels of {tuple(labels.shape)}")
        if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < size:
            raise IndexError(f"labels from {labels.min()} to {labels.max()} for {size} logits")
        labels, shares = labels.contiguous(), None if shares is None else shares.float().contiguous()
        job = _Labelled(*_places(logits, labels, shares, losses), rows=rows, stride=logits.stride(0), size=size)
        job.width, job.narrow = labels.shape[1], _is_narrow(logits)
        self._run(_DIFFERENTIATE, job)
        return losses


def _places(*tensors: Tensor | None) -> list[int | None]:
    return [None if tensor is None else tensor.data_ptr() for tensor in tensors]


def _is_narrow(x: Tensor) -> bool:
    return x.dtype == torch.bfloat16


def _norm(x: Tensor, gain: Tensor, out: Tensor, scale: Tensor, *back: Tensor | None, epsilon: float = 0.0) -> _Norm:
    job = _Norm(*_places(x, gain, out, scale, *back), epsilon=epsilon)
    job.rows, job.size = x.numel() // x.shape[-1], x.shape[-1]
    job.narrow, job.narrow_out = _is_narrow(x), _is_narrow(out)
    return job


@cache
def training_kernels() -> Kernels | None:
    """None where there is no compiled library, no faster instruction set than plain C's, or no OpenMP of GNU's."""
    with suppress(NativeError, AttributeError, OSError, TypeError):
        found = library()
        level = found.athanor_best()
        # torch's own products keep from AMX by this variable.
        most = os.environ.get("ONEDNN_MAX_CPU_ISA", "ALL").upper()
        tiles = ("AMX" in most or most in ("ALL", "DEFAULT")) and bool(found.athanor_tiles())
        return Kernels(found, level, tiles) if level else None
    return None


def kernels_for(*tensors: Tensor) -> Kernels | None:
    """The kernels, where they take what walks these from end to end."""
    whole = all(x.is_contiguous() and x.device.type == "cpu" and x.dtype in TYPES for x in tensors)
    return training_kernels() if whole and all(x.shape[-1:].numel() % LANES == 0 for x in tensors) else None
