"""What a training step does besides large products, in C: attention over packed documents, rotary positions, RMSNorm,
gated feed-forward layers, the softmax of the cross-entropy, and the walks of Muon and of the gradients' norm.

On a CPU torch's attention computes all pairs of a row and masks most of them away, and its pointwise operations walk
memory once each. Here a query attends to its own document only, and each of the others is one walk. All is computed in
fp32 and rounded once, in one order of summation whatever the number of threads and the instruction set; but attention
in bf16 goes through AMX where there is one, with weights and slopes of scores rounded as its products ask. The work is
done by torch's own threads, so it needs GNU's OpenMP, as torch has on Linux; elsewhere torch's operations do it. The
model's files know nothing of it: `use_kernels` puts it around their modules from outside.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from ctypes import Structure, byref, c_float, c_int32, c_int64, c_void_p
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from athanor.engine.native.library import NativeError, library
from athanor.models.attention import Attention
from athanor.models.block import Block, Norms
from athanor.models.config import RopeConfig
from athanor.models.mlp import Mlp
from athanor.models.norm import RMSNorm
from athanor.models.precision import product_type
from athanor.models.where import Where

_LANES, _ROWS_TOGETHER, _TOGETHER = 16, 64, 1 << 14
_ATTEND, _NORM, _GATE, _TURN, _BLEND, _MOVE, _SQUARE, _TRANSPOSE, _ADD, _DIFFERENTIATE = range(10)
_IN_TILES = (32, 64, 96, 128)  # sizes of heads
_TYPES = (torch.float32, torch.bfloat16)
_MUCH_WIDER = 2.0  # where turning the narrower operand around takes less time than it saves


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
            x.device.type == "cpu" and x.dtype in _TYPES and x.stride(-1) == 1 and x.shape[-1] % _LANES == 0
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

    def gate_back(self, gradient: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
        gradients = torch.empty_like(gate), torch.empty_like(up)
        places = _places(gate, up, gradient, gradient, *gradients)
        self._run(_GATE, _Gate(*places, size=gate.numel(), narrow=_is_narrow(gate)))
        return gradients

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
    whole = all(x.is_contiguous() and x.device.type == "cpu" and x.dtype in _TYPES for x in tensors)
    return training_kernels() if whole and all(x.shape[-1:].numel() % _LANES == 0 for x in tensors) else None


def _serve(*tensors: Tensor) -> bool:
    """Whether the kernels do these here and now."""
    return torch.is_grad_enabled() and training_kernels() is not None and Kernels.takes(*tensors)


def _found() -> Kernels:
    kernels = training_kernels()
    assert kernels is not None
    return kernels


def use_kernels(model: nn.Module) -> None:
    """From now on the model's layers go through the kernels, where gradients are taken on a CPU that has them."""
    if training_kernels() is None:
        return
    inputs = {id(part.input) for block in model.modules() if isinstance(block, Block) for part in _narrowed(block)}
    for module in model.modules():
        ways: dict[str, Callable[..., Any]] = {}
        if type(module) is Attention:
            ways = {"project": _project, "mix": _mix, "turn": _turn}
        elif type(module) is Mlp:
            ways = {"project": _project_mlp} | ({"gated": _gated} if module.activation is F.silu else {})
            object.__setattr__(module.down, "forward", partial(_linear, module.down))
        elif type(module) is Block:
            ways = {"read": _read} | ({"add": _add} if module.scale == 1 else {})
        elif type(module) is RMSNorm:
            ways = {"forward": _normed_narrow if id(module) in inputs else _normed}
        for name, way in ways.items():
            object.__setattr__(module, name, partial(way, module))


def _narrowed(block: Block) -> list[Any]:
    """The norms whose results go into products alone, which take them in the products' type."""
    plain = type(block.mlp) is Mlp  # a router reads what comes in fp32
    shared = block.parallel and isinstance(block.mlp_norms.input, nn.Identity)
    return [*([block.attention_norms] if plain or not shared else []), *([block.mlp_norms] if plain else [])]


class _Linears(torch.autograd.Function):
    """Linear layers of one bf16 input. Products for the gradients of matrices have to turn an operand around, which
    torch's do slowly; so the narrower one is turned around before, once for all layers.
    """

    @staticmethod
    def forward(context: Any, x: Tensor, count: int, *parameters: Tensor | None) -> tuple[Tensor, ...]:
        """parameters: `count` weights, and as many biases."""
        weights = [weight.to(x.dtype) for weight in parameters[:count] if weight is not None]
        context.save_for_backward(x, *weights)
        context.types = [None if parameter is None else parameter.dtype for parameter in parameters]
        return tuple(F.linear(x, *given) for given in zip(weights, parameters[count:], strict=True))

    @staticmethod
    @once_differentiable
    def backward(context: Any, *given: Tensor) -> tuple[Tensor | None, ...]:
        x, *weights = context.saved_tensors
        wanted_of_x, _, *wanted = context.needs_input_grad
        rows, gradients = x.flatten(0, -2), [gradient.flatten(0, -2).contiguous() for gradient in given]
        of_x = torch.mm(gradients[0], weights[0]) if wanted_of_x else None
        for gradient, weight in zip(gradients[1:], weights[1:], strict=True):
            if of_x is not None:
                of_x.addmm_(gradient, weight)
        found: list[Tensor | None] = [None] * len(wanted)
        for i, of_weight in enumerate(_of_weights(rows.contiguous(), gradients) if any(wanted) else ()):
            for place, one in ((i, of_weight), (i + len(weights), None)):
                if wanted[place]:
                    one = gradients[i].sum(0, dtype=torch.float32) if one is None else one
                    found[place] = one.to(context.types[place])
        return None if of_x is None else of_x.view_as(x), None, *found


def _of_weights(x: Tensor, gradients: list[Tensor]) -> Iterator[Tensor]:
    """x (rows, inputs), gradients (rows, outputs) each → (outputs, inputs)."""
    kernels, outputs = _found(), sum(gradient.shape[1] for gradient in gradients)
    turned = kernels.transpose(x) if outputs > _MUCH_WIDER * x.shape[1] else None
    for gradient in gradients:
        if turned is not None:
            found = x.new_zeros(gradient.shape[1], x.shape[1], dtype=torch.float32)
            yield kernels.transpose(turned @ gradient, added_to=found)
        elif x.shape[1] > _MUCH_WIDER * gradient.shape[1]:
            yield kernels.transpose(gradient) @ x
        else:
            yield gradient.T @ x


def _linears(x: Tensor, *layers: nn.Linear) -> tuple[Tensor, ...]:
    weights, biases = [layer.weight for layer in layers], [layer.bias for layer in layers]
    if product_type(x) != torch.bfloat16 or not _serve(x):
        return tuple(layer(x) for layer in layers)
    return _Linears.apply(x.to(torch.bfloat16), len(layers), *weights, *biases)


def _project(module: Attention, x: Tensor) -> tuple[Tensor, ...]:
    """As `Attention.project`."""
    return _linears(x, module.query, module.key, module.value)


def _project_mlp(module: Mlp, x: Tensor) -> tuple[Tensor, ...]:
    """As `Mlp.project`."""
    assert module.gate is not None
    return _linears(x, module.gate, module.up)


def _linear(module: nn.Linear, x: Tensor) -> Tensor:
    if product_type(x) != torch.bfloat16 or not _serve(x):
        return nn.Linear.forward(module, x)
    return _linears(x, module)[0]


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(
        context: Any, queries: Tensor, keys: Tensor, values: Tensor, spans: tuple[Tensor, Tensor], scale: float
    ) -> Tensor:
        queries, keys, values = queries.contiguous(), keys.contiguous(), values.contiguous()
        out, logsumexp = _found().attend(queries, keys, values, spans, scale)
        context.save_for_backward(queries, keys, values, *spans, out, logsumexp)
        context.scale = scale
        return out

    @staticmethod
    @once_differentiable
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        found = _found().attend_back(gradients[0].contiguous(), context.saved_tensors, context.scale)
        return *found, None, None


def _mix(module: Attention, queries: Tensor, keys: Tensor, values: Tensor, where: Where) -> Tensor:
    """As `Attention.mix`: (batch, heads, time, head_dim) each."""
    own = where.positions.shape == (len(queries), queries.shape[2])  # not one row for all
    spans = where.spans(module.config.window) if own and _serve(queries, keys, values) else None
    if spans is None or module.config.soft_cap is not None:
        return Attention.mix(module, queries, keys, values, where)
    turned = (one.transpose(1, 2) for one in (queries, keys, values))
    return _Attend.apply(*turned, spans, module.scale).transpose(1, 2)


class _Turned(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        context.save_for_backward(cosine, sine)
        return _found().turn(x.contiguous(), cosine, sine)

    @staticmethod
    @once_differentiable
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        cosine, sine = context.saved_tensors
        return _found().turn(gradients[0].contiguous(), cosine, sine, back=True), None, None


def _turn(module: Attention, x: Tensor, where: Where) -> Tensor:
    """As `Attention.turn`: (batch, time, heads, head_dim)."""
    config = module.config
    if _serve(x) and isinstance(config.position, RopeConfig) and not config.position.interleaved:
        cosine, sine = where.angles(config.position, config.rotary_dim)
        if cosine.shape[:2] == x.shape[:2] and cosine.shape[-1] % _LANES == 0:
            return _Turned.apply(x, cosine.float().contiguous(), sine.float().contiguous())
    return Attention.turn(module, x, where)


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, gate: Tensor, up: Tensor) -> Tensor:
        gate, up = gate.contiguous(), up.contiguous()
        context.save_for_backward(gate, up)
        return _found().gate(gate, up)

    @staticmethod
    @once_differentiable
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return _found().gate_back(gradients[0].contiguous(), *context.saved_tensors)


def _gated(module: Mlp, gate: Tensor, up: Tensor) -> Tensor:
    return _Gated.apply(gate, up) if _serve(gate, up) else Mlp.gated(module, gate, up)


class _Normed(torch.autograd.Function):
    """x as it is, so that its gradient from elsewhere comes here to be added, and x normed."""

    @staticmethod
    def forward(
        context: Any, x: Tensor, weight: Tensor, epsilon: float, offset: float, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        given = x
        x, gain = x.contiguous(), weight.float() + offset if offset else weight.float().contiguous()
        normed, scale = _found().norm(x, gain, epsilon, dtype)
        context.save_for_backward(x, weight, scale)
        context.offset = offset
        context.set_materialize_grads(False)
        return given.view_as(given), normed

    @staticmethod
    @once_differentiable
    def backward(context: Any, past: Tensor | None, gradient: Tensor | None) -> tuple[Tensor | None, ...]:
        x, weight, scale = context.saved_tensors
        if gradient is None:
            return past, None, None, None, None
        past = None if past is None else past.contiguous()
        gain = weight.float() + context.offset if context.offset else weight.float().contiguous()
        x_gradient, weight_gradient = _found().norm_back(gradient.contiguous(), x, gain, scale, past)
        return x_gradient, weight_gradient.to(weight.dtype), None, None, None


def _normed(module: RMSNorm, x: Tensor, narrowed: bool = False) -> Tensor:
    """narrowed: what comes out is of the type of the products that it goes into."""
    dtype = product_type(x) if narrowed else x.dtype
    if not _serve(x) or dtype not in _TYPES:
        return RMSNorm.forward(module, x)
    normed: Tensor = _Normed.apply(x, module.weight, module.epsilon, module.offset, dtype)[1]
    return normed


def _normed_narrow(module: RMSNorm, x: Tensor) -> Tensor:
    return _normed(module, x, narrowed=True)


def _read(module: Block, x: Tensor, norms: Norms) -> tuple[Tensor, Tensor]:
    """As `Block.read`."""
    norm = norms.input
    dtype = product_type(x) if any(norms is one for one in _narrowed(module)) else x.dtype
    if type(norm) is not RMSNorm or not _serve(x) or dtype not in _TYPES:
        return Block.read(module, x, norms)
    passed, normed = _Normed.apply(x, norm.weight, norm.epsilon, norm.offset, dtype)
    return passed, normed


class _Add(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor, part: Tensor) -> Tensor:
        context.dtype = part.dtype
        return _found().add(x.contiguous(), part.contiguous())

    @staticmethod
    @once_differentiable
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        return gradients[0], gradients[0].to(context.dtype)


def _add(module: Block, x: Tensor, part: Tensor) -> Tensor:
    """As `Block.add`."""
    if x.dtype == torch.float32 and x.shape == part.shape and _serve(x) and _serve(part):
        return _Add.apply(x, part)
    return Block.add(module, x, part)
