"""Rotary positions: parts of each head are turned against each other by an angle that grows with the position.

Frequencies are stretched for longer contexts as `RopeScaling` says; the formulas are those of transformers'
`modeling_rope_utils`, which the tests compare with.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from athanor.models.position_config import RopeConfig, RopeScaling


def rotary_angles(positions: Tensor, dim: int, config: RopeConfig) -> tuple[Tensor, Tensor]:
    """Cosines and sines for `positions` (batch, time): each (batch, time, 1, dim / 2) fp32, to broadcast over heads.

    dim: how much of a head is turned.
    """
    frequencies, factor = rotary_frequencies(positions, dim, config)
    angles = positions[..., None, None].float() * frequencies
    cosine, sine = angles.cos(), angles.sin()
    return (cosine, sine) if factor == 1 else (cosine * factor, sine * factor)


def rotary_frequencies(positions: Tensor, dim: int, config: RopeConfig) -> tuple[Tensor, float]:
    """(dim / 2,) fp32 angles a position, and what cosines and sines are multiplied with."""
    scaling = config.scaling
    plain = _plain(config.theta, dim, positions.device)
    if scaling is None:
        return plain, 1.0
    match scaling.kind:
        case "linear":
            return plain / scaling.factor, 1.0
        case "dynamic":
            length = max(int(positions.max()) + 1, scaling.original_length)
            growth = scaling.factor * length / scaling.original_length - (scaling.factor - 1)
            return _plain(config.theta * growth ** (dim / (dim - 2)), dim, positions.device), 1.0
        case "llama3":
            return _llama3(plain, scaling), 1.0
        case "yarn":
            return _yarn(plain, config.theta, dim, scaling)
        case "longrope":
            return _longrope(plain, positions, scaling)


def _plain(theta: float, dim: int, device: torch.device) -> Tensor:
    exponents = torch.arange(0, dim, 2, dtype=torch.float32, device=device) / dim
    return 1.0 / theta**exponents


def _llama3(plain: Tensor, scaling: RopeScaling) -> Tensor:
    """Long wavelengths are stretched, short ones kept, those between interpolated."""
    turns = scaling.original_length * plain / (2 * math.pi)
    smooth = ((turns - scaling.low) / (scaling.high - scaling.low)).clamp(0, 1)
    return (1 - smooth) * plain / scaling.factor + smooth * plain


def _yarn(plain: Tensor, theta: float, dim: int, scaling: RopeScaling) -> tuple[Tensor, float]:
    def place(turns: float) -> float:
        """The index of the frequency that makes so many turns within the original length."""
        return dim * math.log(scaling.original_length / (turns * 2 * math.pi)) / (2 * math.log(theta))

    first, last = place(scaling.high), place(scaling.low)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, dim - 1)
    if first == last:
        last += 0.001
    ramp = ((torch.arange(dim // 2, dtype=torch.float32, device=plain.device) - first) / (last - first)).clamp(0, 1)
    factor = scaling.attention_factor
    if factor is None:
        factor = 0.1 * math.log(scaling.factor) + 1.0 if scaling.factor > 1 else 1.0
    return plain / scaling.factor * ramp + plain * (1 - ramp), factor


def _longrope(plain: Tensor, positions: Tensor, scaling: RopeScaling) -> tuple[Tensor, float]:
    longer = int(positions.max()) + 1 > scaling.original_length
    factors = torch.tensor(scaling.long_factors if longer else scaling.short_factors, device=plain.device)
    factor = scaling.attention_factor
    if factor is None:
        growth = scaling.factor
        factor = math.sqrt(1 + math.log(growth) / math.log(scaling.original_length)) if growth > 1 else 1.0
    return plain / factors, factor


def _turn(x: Tensor, cosine: Tensor, sine: Tensor, interleaved: bool) -> Tensor:
    turned = torch.empty_like(x)
    if interleaved:
        first, second, left, right = x[..., ::2], x[..., 1::2], turned[..., ::2], turned[..., 1::2]
        left.copy_(first * cosine).addcmul_(second, sine, value=-1)
        right.copy_(second * cosine).addcmul_(first, sine)
        return turned
    first, second = x.chunk(2, dim=-1)
    left, right = turned.chunk(2, dim=-1)
    torch.mul(first, cosine, out=left).addcmul_(second, sine, value=-1)
    torch.mul(second, cosine, out=right).addcmul_(first, sine)
    return turned


def _turned(x: Tensor, cosine: Tensor, sine: Tensor, interleaved: bool) -> Tensor:
    first, second = (x[..., ::2], x[..., 1::2]) if interleaved else x.chunk(2, dim=-1)
    left, right = first * cosine - second * sine, second * cosine + first * sine
    return torch.stack([left, right], -1).flatten(-2) if interleaved else torch.cat([left, right], -1)


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor, cosine: Tensor, sine: Tensor, interleaved: bool) -> Tensor:
        context.save_for_backward(cosine, sine)
        context.interleaved = interleaved
        return _turn(x, cosine, sine, interleaved)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        cosine, sine = context.saved_tensors
        return _turn(gradients[0].contiguous(), cosine, -sine, context.interleaved), None, None, None


def rotate(x: Tensor, cosine: Tensor, sine: Tensor, interleaved: bool = False) -> Tensor:
    """x: (batch, time, heads, head_dim), whose first 2 · cosine.shape[-1] values are turned by the angles of
    `rotary_angles`.
    """
    dim = 2 * cosine.shape[-1]
    cosine, sine = cosine.to(x.dtype), sine.to(x.dtype)
    if torch.compiler.is_compiling():  # a compiler fuses what is written plainly, and knows no parts of outputs
        turned = _turned(x[..., :dim], cosine, sine, interleaved)
        return turned if dim == x.shape[-1] else torch.cat([turned, x[..., dim:]], dim=-1)
    turn = _Rotate.apply if torch.is_grad_enabled() else _turn
    if dim == x.shape[-1]:
        return turn(x, cosine, sine, interleaved)
    return torch.cat([turn(x[..., :dim].contiguous(), cosine, sine, interleaved), x[..., dim:]], dim=-1)
