"""Positions that are not rotary: learned and sinusoidal tables, ALiBi's slopes, T5's relative bias."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from athanor.models.position_config import RelativeBias


def alibi_slopes(n_heads: int) -> Tensor:
    """(heads,) fp32: powers of 2^(−8/n); between powers of two, every second slope of the next one is put behind."""
    whole = 2 ** math.floor(math.log2(n_heads))
    slopes = [2 ** (-8 * (i + 1) / whole) for i in range(whole)]
    slopes += [2 ** (-8 * (2 * i + 1) / (2 * whole)) for i in range(n_heads - whole)]
    return torch.tensor(slopes, dtype=torch.float32)


def sinusoids(places: Tensor, size: int, to_end: bool = False) -> Tensor:
    """places (…) int → (…, size) fp32: the sines of all frequencies, then the cosines (Marian's and fairseq's order).

    to_end: the last frequency is 1/10,000, else the one after it would be.
    """
    half = size // 2
    steps = torch.arange(half, dtype=torch.float32, device=places.device) / max(half - to_end, 1)
    angles = places[..., None].float() * 10_000**-steps
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


class RelativeBiasTable(nn.Module):
    """T5's bias of the scores: one number a head for each bucket of distances; near ones have a bucket each, far ones
    share logarithmically.
    """

    def __init__(self, config: RelativeBias, n_heads: int, causal: bool) -> None:
        super().__init__()
        self.config, self.causal = config, causal
        self.weight = nn.Parameter(torch.empty(config.buckets, n_heads))

    def forward(self, distance: Tensor) -> Tensor:
        """distance: (batch or 1, 1, time, attended) int, positive backwards → (batch or 1, heads, time, attended)."""
        return self.weight[self._bucket(distance[:, 0])].permute(0, 3, 1, 2)

    def _bucket(self, distance: Tensor) -> Tensor:
        buckets = self.config.buckets
        if self.causal:
            first, distance = torch.zeros_like(distance), distance.clamp(min=0)
        else:
            buckets //= 2
            first, distance = (distance < 0).long() * buckets, distance.abs()
        exact = buckets // 2
        far = torch.log(distance.float() / exact) / math.log(self.config.farthest / exact) * (buckets - exact)
        beyond = (exact + far.clamp(min=0).long()).clamp(max=buckets - 1)
        return first + torch.where(distance < exact, distance, beyond)
