"""From the last states to logits."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from athanor.models.config import ModelConfig, NormConfig
from athanor.models.embedding import Embedding
from athanor.models.mlp import ACTIVATIONS
from athanor.models.norm import norm


class Head(nn.Module):
    """states (…, d_model) → logits (…, vocab_size or outputs). A tied head has no matrix but the embedding's."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        head = config.head
        assert head is not None
        self.config, outputs = head, head.outputs or config.vocab_size
        size = config.d_model if head.outputs else config.embedding.size or config.d_model
        self.weight = None if head.tied else nn.Parameter(torch.empty(outputs, size))
        self.bias = nn.Parameter(torch.zeros(outputs)) if head.bias else None
        self.dense = nn.Linear(config.d_model, size, bias=head.transform_bias) if head.transform else None
        self.narrow = nn.Linear(config.d_model, size, bias=False) if head.narrow else None
        norms = (config.embedding.norm or NormConfig(1e-12, "layer", True)) if head.transform_norm else None
        self.norm = norm(size, norms) if head.transform else None

    @property
    def is_plain(self) -> bool:
        """Whether logits are a matrix product and nothing else."""
        return (
            self.bias is None
            and self.dense is self.narrow is None
            and self.config.scale == 1
            and self.config.soft_cap is None
        )

    def forward(self, states: Tensor, embedding: Embedding) -> Tensor:
        if self.dense is not None and self.norm is not None and self.config.transform is not None:
            states = self.norm(ACTIVATIONS[self.config.transform](self.dense(states)))
        if self.narrow is not None:
            states = self.narrow(states)
        logits = self.product(states, embedding)
        if self.config.scale != 1:
            logits = logits * self.config.scale
        cap = self.config.soft_cap
        return logits if cap is None else (logits / cap).tanh() * cap

    def product(self, states: Tensor, embedding: Embedding) -> Tensor:
        """The matrix product alone."""
        return F.linear(states, embedding.tokens.weight if self.weight is None else self.weight, self.bias)
