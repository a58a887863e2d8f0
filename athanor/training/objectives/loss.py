"""What an objective returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class Loss:
    """sum: summed loss in nats, differentiable; count: number of targets it was summed over; metrics: further sums over
    them.
    """

    sum: Tensor
    count: int
    metrics: Mapping[str, float] = field(default_factory=dict)
