"""From ids to the states of the first layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from athanor.base.errors import ModelError
from athanor.models.config import ModelConfig
from athanor.models.ngram_memory import Followers, NGramMemory
from athanor.models.norm import norm
from athanor.models.positions import sinusoids


def table(rows: int, size: int) -> nn.Embedding:
    """Made from a tensor, because drawing initial values on the meta device costs 1.5 s of imports (torch._dynamo)."""
    return nn.Embedding.from_pretrained(torch.empty(rows, size), freeze=False)


class Embedding(nn.Module):
    """tokens (batch, time) int64 → states (batch, time, d_model)."""

    def __init__(self, config: ModelConfig, tokens: nn.Embedding | None = None) -> None:
        """tokens: another embedding's table, to be shared."""
        super().__init__()
        embedding = config.embedding
        self.config, size = embedding, embedding.size or config.d_model
        if tokens is None:
            self.tokens = table(config.vocab_size, size)
        else:  # not registered: its weights belong to the other
            object.__setattr__(self, "tokens", tokens)
        self.widen = nn.Linear(size, config.d_model, bias=embedding.widen_bias) if embedding.size else None
        size = config.d_model if embedding.widen_first else size
        self.positions = table(embedding.positions, size) if embedding.positions else None
        self.types = table(embedding.token_types, size) if embedding.token_types else None
        self.norm = norm(size, embedding.norm)
        self.memory = NGramMemory(embedding.ngrams, size) if embedding.ngrams else None

    def forward(
        self, tokens: Tensor, positions: Tensor, types: Tensor | None = None, followers: Followers | None = None
    ) -> Tensor:
        """positions: (batch, time) int. types: (batch, time) segments, 0 by default. followers: for the memory."""
        config = self.config
        x = self._looked_up(tokens)
        if config.scale != 1:
            x = x * torch.tensor(config.scale, dtype=x.dtype)
        if self.widen is not None and config.widen_first:
            x = self.widen(x)
        if self.positions is not None:
            places = positions + config.position_offset
            if int(places.max()) >= len(self.positions.weight):
                most = len(self.positions.weight) - config.position_offset
                raise ModelError(f"The text has {int(positions.max()) + 1} tokens; this model has {most} positions.")
            x = x + self.positions(places)
        if config.sinusoidal:
            x = x + sinusoids(positions + config.position_offset, x.shape[-1], config.sinusoids_to_end).to(x)
        if self.types is not None:
            x = x + (self.types.weight[0] if types is None else self.types(types))
        if self.memory is not None and followers is not None:
            x = x + self.memory(followers, self.tokens.weight)
        x = self.norm(x)
        return x if self.widen is None or config.widen_first else self.widen(x)

    def _looked_up(self, tokens: Tensor) -> Tensor:
        try:
            return self.tokens(tokens)
        except IndexError:
            rows, low, high = len(self.tokens.weight), int(tokens.min()), int(tokens.max())
            raise ModelError(f"Ids from {low} to {high} do not fit into a vocabulary of {rows}.") from None
