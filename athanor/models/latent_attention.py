"""Multi-head latent attention: keys and values of all heads are made from one narrow, normed vector a token, and the
part of the keys that carries the position is shared by the heads (DeepSeek-V2, arXiv 2405.04434).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from athanor.models.attention import LayerCache, SequencesCache, attend
from athanor.models.config import LatentAttentionConfig
from athanor.models.norm import norm
from athanor.models.rope import rotate
from athanor.models.where import Where


class LatentAttention(nn.Module):
    def __init__(self, d_model: int, config: LatentAttentionConfig) -> None:
        super().__init__()
        self.config = config
        queries = config.n_heads * config.key_dim
        self.query_down = nn.Linear(d_model, config.q_rank, bias=config.bias) if config.q_rank else None
        self.query_norm = norm(config.q_rank, config.norm) if config.q_rank else None
        self.query = nn.Linear(config.q_rank or d_model, queries, bias=False)
        self.key_value_down = nn.Linear(d_model, config.kv_rank + config.rotary_dim, bias=config.bias)
        self.key_value_norm = norm(config.kv_rank, config.norm)
        self.key_value = nn.Linear(config.kv_rank, config.n_heads * (config.plain_dim + config.value_dim), bias=False)
        self.output = nn.Linear(config.n_heads * config.value_dim, d_model, bias=config.bias)
        self.scale = config.key_dim**-0.5 if config.scale is None else config.scale

    def forward(
        self, x: Tensor, where: Where, cache: LayerCache | SequencesCache | None = None, relative: object = None
    ) -> Tensor:
        """x: (batch, time, d_model). relative: nothing, for its positions are rotary."""
        config = self.config
        narrow = x if self.query_down is None or self.query_norm is None else self.query_norm(self.query_down(x))
        queries = self.query(narrow).unflatten(-1, (config.n_heads, config.key_dim))
        latent, shared = self.key_value_down(x).split([config.kv_rank, config.rotary_dim], dim=-1)
        made = self.key_value(self.key_value_norm(latent)).unflatten(-1, (config.n_heads, -1))
        plain, values = made.split([config.plain_dim, config.value_dim], dim=-1)
        angles, interleaved = where.angles(config.position, config.rotary_dim), config.position.interleaved
        turned = rotate(queries[..., config.plain_dim :].contiguous(), *angles, interleaved)
        queries = torch.cat([queries[..., : config.plain_dim], turned], dim=-1).transpose(1, 2)
        shared = rotate(shared[:, :, None].contiguous(), *angles, interleaved).expand(-1, -1, config.n_heads, -1)
        keys, values = torch.cat([plain, shared], dim=-1).transpose(1, 2), values.transpose(1, 2)
        if isinstance(cache, SequencesCache):
            mixed = cache.attend(queries, keys, values, config, self.scale)
            return self.output(mixed.transpose(1, 2).flatten(2))
        if cache is not None:
            keys, values = cache.extend(keys, values)
        mask = where.added_mask(config.window, queries.dtype)
        mixed = attend(queries, keys, values, mask, where.is_causal, self.scale, None)
        return self.output(mixed.transpose(1, 2).flatten(2))
