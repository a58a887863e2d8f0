"""Grouped-query attention with normalised queries and keys."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from athanor.models.config import ModelConfig
from athanor.models.norm import RMSNorm
from athanor.models.rope import rotate


class LayerCache(Protocol):
    """One layer's keys and values of earlier tokens, kept by whoever decodes."""

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Takes the new (batch, kv_heads, time, head_dim) pair and returns all that may be attended to."""
        ...


class Attention(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        attention = config.attention
        self.n_heads, self.n_kv_heads, self.head_dim = attention.n_heads, attention.n_kv_heads, attention.head_dim
        self.query = nn.Linear(config.d_model, self.n_heads * self.head_dim, bias=False)
        self.key = nn.Linear(config.d_model, self.n_kv_heads * self.head_dim, bias=False)
        self.value = nn.Linear(config.d_model, self.n_kv_heads * self.head_dim, bias=False)
        self.output = nn.Linear(self.n_heads * self.head_dim, config.d_model, bias=False)
        self.query_norm = RMSNorm(self.head_dim, config.norm) if attention.qk_norm else nn.Identity()
        self.key_norm = RMSNorm(self.head_dim, config.norm) if attention.qk_norm else nn.Identity()

    def forward(
        self, x: Tensor, angles: tuple[Tensor, Tensor], mask: Tensor | None, cache: LayerCache | None = None
    ) -> Tensor:
        """x: (batch, time, d_model). mask: (batch, 1, time, attended) bool, True where attended; None means causal."""
        batch, time, _ = x.shape
        queries = self.query_norm(self.query(x).view(batch, time, self.n_heads, self.head_dim))
        keys = self.key_norm(self.key(x).view(batch, time, self.n_kv_heads, self.head_dim))
        values = self.value(x).view(batch, time, self.n_kv_heads, self.head_dim)
        queries, keys = rotate(queries, *angles).transpose(1, 2), rotate(keys, *angles).transpose(1, 2)
        values = values.transpose(1, 2)
        if cache is not None:
            keys, values = cache.extend(keys, values)
        mixed = F.scaled_dot_product_attention(
            queries, keys, values, attn_mask=mask, is_causal=mask is None, enable_gqa=self.n_heads != self.n_kv_heads
        )
        return self.output(mixed.transpose(1, 2).reshape(batch, time, -1))


def document_mask(document_ids: Tensor) -> Tensor:
    """Packed rows: a token attends to itself and to earlier tokens of its own document.

    document_ids: (batch, time) int, any number that tells the documents of a row apart; returns (batch, 1, time, time)
    bool.
    """
    time = document_ids.shape[1]
    same = document_ids[:, :, None] == document_ids[:, None, :]
    return (same & torch.ones(time, time, dtype=torch.bool, device=document_ids.device).tril()).unsqueeze(1)
