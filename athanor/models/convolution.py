"""A convolution beside a layer, so that a token sees its neighbours as they stand (DeBERTa v2)."""

from __future__ import annotations

from torch import Tensor, nn

from athanor.models.config import ConvolutionConfig, NormConfig
from athanor.models.mlp import ACTIVATIONS
from athanor.models.norm import norm


class Convolution(nn.Module):
    def __init__(self, d_model: int, config: ConvolutionConfig, norms: NormConfig) -> None:
        super().__init__()
        self.near = nn.Conv1d(d_model, d_model, config.kernel, padding=config.kernel // 2, groups=config.groups)
        self.activation = ACTIVATIONS[config.activation]
        self.norm = norm(d_model, norms)

    def forward(self, given: Tensor, made: Tensor, valid: Tensor | None) -> Tensor:
        """given, made: the layer's input and output (batch, time, d_model). valid: (batch, time) bool; padding is no
        neighbour.
        """
        if valid is not None:
            given = given.masked_fill(~valid[..., None], 0)
        return self.norm(made + self.activation(self.near(given.mT).mT))
