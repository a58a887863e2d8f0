"""The kernels in C (`athanor.training.kernels`) in the layers of a model, whose files know nothing of them: methods are
replaced from outside, and do what they did where the kernels do not serve.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from athanor.models.attention import Attention
from athanor.models.block import Block, Norms
from athanor.models.config import RopeConfig
from athanor.models.mlp import Mlp
from athanor.models.norm import RMSNorm
from athanor.models.precision import cast_weight, product_type
from athanor.models.where import Where
from athanor.training.kernels import LANES, TYPES, Kernels, training_kernels

_MUCH_WIDER = 2.0  # where turning the narrower operand around takes less time than it saves


def use_kernels(model: nn.Module) -> None:
    """From now on the model's layers go through the kernels, where gradients are taken on a CPU that has them."""
    if training_kernels() is None:
        return
    inputs = {id(part.input) for block in model.modules() if isinstance(block, Block) for part in _narrowed(block)}
    for module in model.modules():
        ways: dict[str, Callable[..., Any]] = {}
        if type(module) is Attention:
            ways = {"project": _project, "mix": _mix, "turn": _turn}
            object.__setattr__(module.output, "forward", partial(_linear, module.output))
        elif type(module) is Mlp:
            ways = {"project": _project_mlp} | ({"close": _close} if module.activation is F.silu else {})
            for layer in (module.up, module.down) if module.gate is None else (module.down,):
                object.__setattr__(layer, "forward", partial(_linear, layer))
        elif type(module) is Block:
            ways = {"read": _read} | ({"add": _add} if module.scale == 1 else {})
        elif type(module) is RMSNorm:
            ways = {"forward": _normed_narrow if id(module) in inputs else _normed}
        for name, way in ways.items():
            object.__setattr__(module, name, partial(way, module))


def _serve(*tensors: Tensor) -> bool:
    """Whether the kernels do these here and now."""
    return torch.is_grad_enabled() and training_kernels() is not None and Kernels.takes(*tensors)


def _found() -> Kernels:
    kernels = training_kernels()
    assert kernels is not None
    return kernels


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
        weights = [cast_weight(weight, x.dtype) for weight in parameters[:count] if weight is not None]
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
    narrow = x.dtype == torch.bfloat16
    turned = kernels.transpose(x) if narrow and outputs > _MUCH_WIDER * x.shape[1] else None
    for gradient in gradients:
        if not narrow:
            yield gradient.T @ x
        elif turned is not None:
            found = x.new_zeros(gradient.shape[1], x.shape[1], dtype=torch.float32)
            yield kernels.transpose(turned @ gradient, added_to=found)
        elif x.shape[1] > _MUCH_WIDER * gradient.shape[1]:
            yield kernels.transpose(gradient) @ x
        else:
            yield gradient.T @ x


def _linears(x: Tensor, *layers: nn.Linear) -> tuple[Tensor, ...]:
    if product_type(x) != torch.bfloat16 or not _serve(x):
        return tuple(nn.Linear.forward(layer, x) for layer in layers)
    weights, biases = [layer.weight for layer in layers], [layer.bias for layer in layers]
    return _Linears.apply(x.to(torch.bfloat16), len(layers), *weights, *biases)


def _project(module: Attention, x: Tensor) -> tuple[Tensor, ...]:
    """As `Attention.project`."""
    return _linears(x, module.query, module.key, module.value)


def _project_mlp(module: Mlp, x: Tensor) -> tuple[Tensor, ...]:
    """As `Mlp.project`."""
    assert module.gate is not None
    return _linears(x, module.gate, module.up)


def _linear(module: nn.Linear, x: Tensor) -> Tensor:
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
        if cosine.shape[:2] == x.shape[:2] and cosine.shape[-1] % LANES == 0:
            return _Turned.apply(x, cosine.float().contiguous(), sine.float().contiguous())
    return Attention.turn(module, x, where)


class _GatedLinear(torch.autograd.Function):
    """A linear layer of silu(gate) · up, which is not kept for the backward pass: that makes it again on its way."""

    @staticmethod
    def forward(context: Any, gate: Tensor, up: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        gate, up, narrowed = gate.contiguous(), up.contiguous(), cast_weight(weight, gate.dtype)
        context.save_for_backward(gate, up, narrowed)
        context.types = weight.dtype, None if bias is None else bias.dtype
        return F.linear(_found().gate(gate, up), narrowed, bias)

    @staticmethod
    @once_differentiable
    def backward(context: Any, *given: Tensor) -> tuple[Tensor | None, ...]:
        gate, up, weight = context.saved_tensors
        wanted, of_bias = context.needs_input_grad[2:]
        gradient = given[0].flatten(0, -2).contiguous()
        of_gate, of_up, gated = _found().gate_back((gradient @ weight).view_as(gate), gate, up, again=wanted)
        found = [None if gated is None else next(_of_weights(gated.flatten(0, -2), [gradient]))]
        found.append(gradient.sum(0, dtype=torch.float32) if of_bias else None)
        types = zip(found, context.types, strict=True)
        return of_gate, of_up, *(None if one is None else one.to(dtype) for one, dtype in types)


def _close(module: Mlp, gate: Tensor, up: Tensor) -> Tensor:
    """As `Mlp.close`."""
    if type(module.down) is not nn.Linear or product_type(gate) != gate.dtype or not _serve(gate, up):
        return Mlp.close(module, gate, up)
    return _GatedLinear.apply(gate, up, module.down.weight, module.down.bias)


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
    if not _serve(x) or dtype not in TYPES:
        return RMSNorm.forward(module, x)
    normed: Tensor = _Normed.apply(x, module.weight, module.epsilon, module.offset, dtype)[1]
    return normed


def _normed_narrow(module: RMSNorm, x: Tensor) -> Tensor:
    return _normed(module, x, narrowed=True)


def _read(module: Block, x: Tensor, norms: Norms) -> tuple[Tensor, Tensor]:
    """As `Block.read`."""
    norm = norms.input
    dtype = product_type(x) if any(norms is one for one in _narrowed(module)) else x.dtype
    if type(norm) is not RMSNorm or not _serve(x) or dtype not in TYPES:
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
