"""Grouped-query attention, and the one function that mixes values by scores."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from athanor.models.config import AttentionConfig, LatentAttentionConfig, NormConfig
from athanor.models.disentangled import DisentangledScores, Distances
from athanor.models.norm import HeadNorm, norm
from athanor.models.position_config import Alibi, Disentangled, RopeConfig
from athanor.models.precision import for_products
from athanor.models.rope import rotate
from athanor.models.where import Where


class LayerCache(Protocol):
    """One layer's keys and values of earlier tokens, kept by whoever decodes."""

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Takes the new (batch, kv_heads, time, head_dim) pair and returns all that may be attended to."""
        ...


class SequencesCache(ABC):
    """One layer's keys and values of many sequences, whose tokens stand behind each other in one row: only the keeper
    knows what belongs together, so it attends.
    """

    @abstractmethod
    def attend(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        config: AttentionConfig | LatentAttentionConfig,
        scale: float,
    ) -> Tensor:
        """Takes the new keys and values, (1, kv_heads, tokens, …), and mixes values for the queries (1, heads, tokens,
        key_dim): (1, heads, tokens, value_dim).
        """
        ...


def attend(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor | None,
    is_causal: bool,
    scale: float,
    soft_cap: float | None,
) -> Tensor:
    """(batch, heads, time, value_dim). queries: (batch, heads, time, dim); keys, values: (batch, kv_heads, attended, …)

    mask: bool, True where attended, or an additive bias; None means everything, or the triangle if is_causal.
    """
    shared = queries.shape[1] // keys.shape[1]
    if soft_cap is None:
        return F.scaled_dot_product_attention(
            queries,
            keys,
            values,
            attn_mask=mask,
            is_causal=is_causal and mask is None,
            scale=scale,
            enable_gqa=shared > 1,
        )
    if shared > 1:
        keys, values = keys.repeat_interleave(shared, 1), values.repeat_interleave(shared, 1)
    scores = (queries @ keys.mT).mul_(scale / soft_cap).tanh_() * soft_cap  # tanh's gradient needs its output
    if mask is None and is_causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    return scores.softmax(-1, dtype=torch.float32).to(values.dtype) @ values


class Attention(nn.Module):
    def __init__(self, d_model: int, config: AttentionConfig, norms: NormConfig) -> None:
        super().__init__()
        self.config = config
        queries, keys = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
        self.query = nn.Linear(d_model, queries, bias=config.bias)
        self.key = nn.Linear(d_model, keys, bias=config.bias)
        self.value = nn.Linear(d_model, keys, bias=config.bias)
        self.output = nn.Linear(queries, d_model, bias=config.output_bias)
        self.query_norm = _norm_of(config.n_heads, config, norms)
        self.key_norm = _norm_of(config.n_kv_heads, config, norms)
        self.scale = config.head_dim**-0.5 if config.scale is None else config.scale
        place = config.position
        self.disentangled = DisentangledScores(d_model, queries, place) if isinstance(place, Disentangled) else None

    def forward(
        self,
        x: Tensor,
        where: Where,
        cache: LayerCache | SequencesCache | None = None,
        relative: Tensor | Distances | None = None,
    ) -> Tensor:
        """x: (batch, time, d_model). relative: what the layers share about distances: a bias of the scores, masked
        already, or the vectors of distances.
        """
        config, x = self.config, for_products(x)
        queries, keys, values = self.project(x)
        if config.qk_norm == "projection":
            queries, keys = self.query_norm(queries), self.key_norm(keys)
        queries, keys, values = (part.unflatten(-1, (-1, config.head_dim)) for part in (queries, keys, values))
        if config.qk_norm in ("head", "each"):
            queries, keys = self.query_norm(queries), self.key_norm(keys)
        queries, keys = self.turn(queries, where), self.turn(keys, where)
        queries, keys, values = queries.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2)
        if isinstance(cache, SequencesCache):
            mixed = cache.attend(queries, keys, values, config, self.scale)
            return self.output(mixed.transpose(1, 2).flatten(2))
        if cache is not None:
            keys, values = cache.extend(keys, values)
        bias = relative if isinstance(relative, Tensor) else None
        if self.disentangled is not None and isinstance(relative, Distances):
            added = self.disentangled(queries, keys, relative, self.query, self.key)
            bias = where.masked(added * self.scale, config.window)
        elif isinstance(config.position, Alibi):
            bias = where.bias(config.window, config.position, config.n_heads, self.scale)
        if bias is None:
            mixed = self.mix(queries, keys, values, where)
        else:
            mixed = attend(queries, keys, values, bias.to(queries.dtype), where.is_causal, self.scale, config.soft_cap)
        return self.output(mixed.transpose(1, 2).flatten(2))

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.query(x), self.key(x), self.value(x)

    def turn(self, x: Tensor, where: Where) -> Tensor:
        """Rotary positions, where the model has them. x: (batch, time, heads, head_dim)."""
        position = self.config.position
        if not isinstance(position, RopeConfig):
            return x
        return rotate(x, *where.angles(position, self.config.rotary_dim), position.interleaved)

    def mix(self, queries: Tensor, keys: Tensor, values: Tensor, where: Where) -> Tensor:
        """`attend` by `where` alone."""
        mask = where.added_mask(self.config.window, queries.dtype)
        return attend(queries, keys, values, mask, where.is_causal, self.scale, self.config.soft_cap)


def _norm_of(heads: int, config: AttentionConfig, norms: NormConfig) -> nn.Module:
    """The norm of so many heads' queries or keys."""
    norms = replace(norms, bias=False)
    if config.qk_norm == "each":
        return HeadNorm(heads, config.head_dim, norms)
    size = heads * config.head_dim if config.qk_norm == "projection" else config.head_dim
    return norm(size, norms if config.qk_norm else None)


class CrossAttention(nn.Module):
    """Attention to the states of an encoder; its keys and values are made once for a source."""

    def __init__(self, d_model: int, config: AttentionConfig) -> None:
        super().__init__()
        self.config = config
        width = config.n_heads * config.head_dim
        self.query = nn.Linear(d_model, width, bias=config.bias)
        self.key = nn.Linear(d_model, width, bias=config.bias)
        self.value = nn.Linear(d_model, width, bias=config.bias)
        self.output = nn.Linear(width, d_model, bias=config.output_bias)
        self.scale = config.head_dim**-0.5 if config.scale is None else config.scale

    def read(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of an encoder's states (batch, source, d_model)."""
        keys, values = (
            part.unflatten(-1, (-1, self.config.head_dim)) for part in (self.key(states), self.value(states))
        )
        return keys.transpose(1, 2), values.transpose(1, 2)

    def forward(self, x: Tensor, source: tuple[Tensor, Tensor], mask: Tensor | None) -> Tensor:
        """mask: (batch, 1, 1 or time, source) bool, True where the source may be attended to."""
        queries = self.query(x).unflatten(-1, (-1, self.config.head_dim)).transpose(1, 2)
        mixed = attend(queries, *source, mask, False, self.scale, None)
        return self.output(mixed.transpose(1, 2).flatten(2))
