"""The mean of the weights over the end of a run, which is often better than the last of them (Polyak and Juditsky 1992;
for decaying rates the gain is small, Hägele et al. 2024). It is kept in fp32 beside the weights, and only the saved
model gets it: training itself goes on from its own weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

AverageKind = Literal["none", "tail", "ema"]
_EMA = 0.98  # the last fifty steps


class WeightAverage:
    """kind: "tail" weighs all steps since the first alike, "ema" the later ones more. `state` is what is saved."""

    def __init__(self, model: nn.Module, kind: Literal["tail", "ema"]) -> None:
        self.model, self.least = model, 0.0 if kind == "tail" else 1 - _EMA
        self.state: dict[str, Tensor] = {
            name: torch.zeros_like(parameter, dtype=torch.float32)
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        }
        self._count = self.state["count"] = torch.zeros((), dtype=torch.int64)

    @torch.no_grad()
    def take(self) -> None:
        """Takes the present weights in."""
        self._count += 1
        part = max(1 / int(self._count), self.least)
        for name, parameter in self.model.named_parameters():
            if name in self.state:
                self.state[name].lerp_(parameter.float(), part)

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        for name, tensor in self.state.items():
            tensor.copy_(state[name])

    @torch.no_grad()
    def give(self) -> None:
        """The model's weights become the average, if there is one yet."""
        if self._count:
            for name, parameter in self.model.named_parameters():
                if name in self.state:
                    parameter.copy_(self.state[name])
