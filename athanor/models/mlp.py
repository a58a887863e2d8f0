"""The feed-forward layer, gated or not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from athanor.models.config import Activation, MlpConfig
from athanor.models.precision import for_products


def _relu_squared(x: Tensor) -> Tensor:
    return F.relu(x).square()


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def _quick_gelu(x: Tensor) -> Tensor:
    return x * (1.702 * x).sigmoid()


ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "silu": F.silu, "gelu": F.gelu, "gelu_tanh": _gelu_tanh, "relu": F.relu, "relu_squared": _relu_squared,
    "quick_gelu": _quick_gelu, "tanh": F.tanh,
}  # fmt: skip


class _SwiGlu(torch.autograd.Function):
    """silu(gate) · up. Autograd would keep silu(gate) too; here it is made again."""

    @staticmethod
    def forward(context: Any, gate: Tensor, up: Tensor) -> Tensor:
        context.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = context.saved_tensors
        (gradient,) = gradients
        return torch.ops.aten.silu_backward(gradient * up, gate), F.silu(gate).mul_(gradient)


class Mlp(nn.Module):
    def __init__(self, d_model: int, config: MlpConfig) -> None:
        super().__init__()
        self.gate = nn.Linear(d_model, config.d_ff, bias=config.bias) if config.gated else None
        self.up = nn.Linear(d_model, config.d_ff, bias=config.bias)
        self.down = nn.Linear(config.d_ff, d_model, bias=config.bias)
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, x: Tensor) -> Tensor:
        if self.gate is None:
            return self.down(self.activation(self.up(x)))
        x = for_products(x)
        if self.activation is F.silu:
            return self.down(_SwiGlu.apply(self.gate(x), self.up(x)))
        return self.down(self.activation(self.gate(x)) * self.up(x))
