"""The feed-forward layer, gated or not."""

from __future__ import annotations

from collections.abc import Callable

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
        gate, up = self.project(x)
        return self.close(gate, up)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor]:
        assert self.gate is not None
        return self.gate(x), self.up(x)

    def close(self, gate: Tensor, up: Tensor) -> Tensor:
        return self.down(self.activation(gate) * up)
