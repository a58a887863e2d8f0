"""A memory that costs no products: what usually follows the last few tokens joins their token's embedding.

The mean of the followers' embeddings, by their probabilities in a table of n-grams of the training text, goes through a
matrix and is added to the states. A small network then need not learn by heart what counting knows, and spends its
training on the rest (memory looked up by n-grams: DeepSeek's Engram, 2026; there what is looked up is learnt). Nobody
else computes this: such a model is saved as its own family and cannot become a GGUF file.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from athanor.base.errors import ModelError
from athanor.models.ngrams import NGrams


class Followers(NamedTuple):
    """words: (batch, time, width) int64; shares: their probabilities, fp32."""

    words: Tensor
    shares: Tensor


class NGramMemory(nn.Module):
    """table: is no parameter; `load_model` reads it, and whoever trains sets it."""

    def __init__(self, longest: int, size: int) -> None:
        super().__init__()
        self.longest = longest
        self.project = nn.Linear(size, size, bias=False)
        self.table: NGrams | None = None

    def look_up(
        self, tokens: Tensor, documents: Tensor | None = None, valid: Tensor | None = None, before: Tensor | None = None
    ) -> Followers:
        """tokens: (batch, time) of text that was not counted. documents: (batch, time), for packed rows; valid: (batch,
        time) bool, False for padding. before: (batch, any) tokens that stand before these, the last ones of them.
        """
        rows = tokens.cpu().numpy()
        ids = np.zeros_like(rows) if documents is None else documents.cpu().numpy()
        if valid is not None:
            ids = np.where(valid.cpu().numpy(), ids, -1)
        earlier = 0 if before is None else before.shape[1]
        if before is not None:
            rows = np.concatenate([before.cpu().numpy(), rows], 1)
            ids = np.concatenate([np.repeat(ids[:, :1], earlier, 1), ids], 1)
        words, shares = self.counted.look_up(rows, ids)
        return Followers(
            torch.from_numpy(words[:, earlier:]).to(tokens.device),
            torch.from_numpy(shares[:, earlier:]).to(tokens.device),
        )

    @property
    def counted(self) -> NGrams:
        if self.table is None:
            raise ModelError("This model's table of n-grams has not been counted yet.")
        return self.table

    def forward(self, followers: Followers, embeddings: Tensor) -> Tensor:
        """(batch, time, size). embeddings: (vocab_size, size), which are read and not learnt from here."""
        words, shares = followers
        mean = F.embedding_bag(
            words.flatten(0, 1),
            embeddings.detach(),
            per_sample_weights=shares.flatten(0, 1).to(embeddings.dtype),
            mode="sum",
        )
        joined: Tensor = self.project(mean.view(*words.shape[:2], -1))
        return joined
