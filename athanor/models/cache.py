"""Keys and values that grow as a text goes on: the cache for decoding by hand.

All rows grow together; padding is hidden by the attention mask. The engine has a cache of its own, for rows of
different lengths.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Cache:
    """Give the same one to each call: `model(first, cache=cache)`, `model(next, cache=cache)`."""

    def __init__(self, n_layers: int) -> None:
        self.length = 0
        self.tokens: Tensor | None = None  # the last ones, for a model with an n-gram memory
        self.layers = [_Layer() for _ in range(n_layers)]


class _Layer:
    def __init__(self) -> None:
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        if self.keys is not None and self.values is not None:
            keys, values = torch.cat([self.keys, keys], dim=2), torch.cat([self.values, values], dim=2)
        self.keys, self.values = keys, values
        return keys, values
