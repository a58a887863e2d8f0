"""Keys and values of earlier tokens, for a batch of sequences of different lengths.

Sequences are left-aligned in one block of memory; each row has a length of its own and a mask hides what is not its
own, so prompts of any mixture of lengths share a batch without padding on the left.
"""

from __future__ import annotations

import torch
from torch import Tensor

from athanor.models.config import ModelConfig


class KeyValueCache:
    """One block a layer for keys and one for values, each (rows, kv_heads, capacity, size)."""

    def __init__(self, config: ModelConfig, rows: int, capacity: int, dtype: torch.dtype) -> None:
        layers = [layer.attention for layer in config.layers]
        self.keys = [torch.zeros(rows, a.n_kv_heads, capacity, a.key_dim, dtype=dtype) for a in layers]
        self.values = [torch.zeros(rows, a.n_kv_heads, capacity, a.value_dim, dtype=dtype) for a in layers]
        self.lengths = torch.zeros(rows, dtype=torch.int64)
        self.capacity = capacity

    def prefill_layers(self, attended: int) -> list[_Prefill]:
        """For the first pass over rows of `attended` places, all starting at place 0."""
        return [_Prefill(k, v, attended) for k, v in zip(self.keys, self.values, strict=True)]

    def step_layers(self, attended: int) -> list[_Step]:
        """For one token a row at place `lengths[row]`; `attended` bounds the places looked at."""
        return [_Step(k, v, self.lengths, attended) for k, v in zip(self.keys, self.values, strict=True)]

    def select(self, rows: Tensor) -> None:
        """Keeps only `rows`, in that order; a row may be taken several times."""
        self.keys = [block[rows] for block in self.keys]
        self.values = [block[rows] for block in self.values]
        self.lengths = self.lengths[rows]


class _Prefill:
    def __init__(self, keys: Tensor, values: Tensor, attended: int) -> None:
        self.keys, self.values, self.attended = keys, values, attended

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        self.keys[:, :, : self.attended] = keys
        self.values[:, :, : self.attended] = values
        return keys, values


class _Step:
    def __init__(self, keys: Tensor, values: Tensor, lengths: Tensor, attended: int) -> None:
        self.keys, self.values, self.lengths, self.attended = keys, values, lengths, attended

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        rows = torch.arange(len(self.lengths))
        self.keys[rows, :, self.lengths] = keys[:, :, 0].to(self.keys.dtype)
        self.values[rows, :, self.lengths] = values[:, :, 0].to(self.values.dtype)
        return self.keys[:, :, : self.attended], self.values[:, :, : self.attended]
