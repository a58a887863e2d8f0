"""Rotary positions: each head's first half is turned against its second by an angle that grows with the position."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from athanor.models.config import RopeConfig


def rotary_angles(positions: Tensor, head_dim: int, config: RopeConfig) -> tuple[Tensor, Tensor]:
    """Cosines and sines for `positions` (batch, time): each (batch, time, 1, head_dim / 2) fp32, to broadcast over
    heads.
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions.device) / head_dim
    angles = positions[..., None, None].float() / config.theta**exponents
    return angles.cos(), angles.sin()


def _turn(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    turned = torch.empty_like(x)
    left, right = turned.chunk(2, dim=-1)
    torch.mul(first, cosine, out=left).addcmul_(second, sine, value=-1)
    torch.mul(second, cosine, out=right).addcmul_(first, sine)
    return turned


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        context.save_for_backward(cosine, sine)
        return _turn(x, cosine, sine)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        cosine, sine = context.saved_tensors
        return _turn(gradients[0].contiguous(), cosine, -sine), None, None


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """x: (batch, time, heads, head_dim), turned by the angles of `rotary_angles`."""
    return _Rotate.apply(x, cosine.to(x.dtype), sine.to(x.dtype))
