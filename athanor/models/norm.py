"""Norms. RMSNorm has a hand-written backward pass: eager autograd would walk memory three times as often, and on a CPU
walking memory is the cost.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from athanor.models.config import NormConfig


def _rms_norm(x: Tensor, weight: Tensor, epsilon: float, offset: float) -> tuple[Tensor, Tensor]:
    """What x becomes, and what it was multiplied with before the weights."""
    wide = x.float()  # the mean square is taken in fp32, as transformers does
    norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    scale = norm.square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()
    if offset:  # in bf16 the sum would lose most of the weight
        return (wide * scale).mul_(weight.float() + offset).to(x.dtype), scale
    return (wide * scale).to(x.dtype).mul_(weight.to(x.dtype)), scale


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor, weight: Tensor, epsilon: float, offset: float) -> Tensor:
        normed, scale = _rms_norm(x, weight, epsilon, offset)
        context.save_for_backward(x, weight, scale)
        context.offset = offset
        return normed

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, weight, scale = context.saved_tensors
        gradient, gain = gradients[0].float(), weight.float() + context.offset
        normed = x.float() * scale
        product = gradient * normed
        weight_gradient = product.flatten(0, -2).sum(0)
        projection = (product @ gain).div_(-x.shape[-1]).unsqueeze(-1)
        x_gradient = (gradient * gain).addcmul_(normed, projection).mul_(scale)
        return x_gradient.to(x.dtype), weight_gradient.to(weight.dtype), None, None


class RMSNorm(nn.Module):
    """x / rms(x) · (weight + offset) over the last dimension of (…, size)."""

    def __init__(self, size: int, config: NormConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.epsilon, self.offset = config.epsilon, config.offset

    def forward(self, x: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return _rms_norm(x, self.weight, self.epsilon, self.offset)[0]
        return _RmsNorm.apply(x, self.weight, self.epsilon, self.offset)


class LayerNorm(nn.Module):
    """(x − mean) / deviation · weight + bias over the last dimension of (…, size)."""

    def __init__(self, size: int, config: NormConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.bias = nn.Parameter(torch.zeros(size)) if config.bias else None
        self.epsilon = config.epsilon

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.epsilon)


class HeadNorm(nn.Module):
    """A norm of each head in (…, heads, head_dim), with gains of its own."""

    def __init__(self, heads: int, head_dim: int, config: NormConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(heads, head_dim))
        self.epsilon, self.offset = config.epsilon, config.offset
        self.apply_norm = F.layer_norm if config.kind == "layer" else F.rms_norm

    def forward(self, x: Tensor) -> Tensor:
        return self.apply_norm(x, x.shape[-1:], eps=self.epsilon) * (self.weight + self.offset)


def norm(size: int, config: NormConfig | None) -> nn.Module:
    """The module for `config`; without one, nothing is done."""
    if config is None:
        return nn.Identity()
    return RMSNorm(size, config) if config.kind == "rms" else LayerNorm(size, config)
