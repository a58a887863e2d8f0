"""Disentangled attention: beside content with content, queries are scored against where a key stands, and keys against
where the query stands (DeBERTa, He et al. 2021, arXiv 2006.03654; with the buckets of v2 and v3).

A stack has one table of vectors, one a distance or bucket of distances, and every layer projects it. Only the vectors
of distances that occur in a text are normed and projected: for a text of 64 tokens 127 of v3's 512.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from athanor.models.config import NormConfig
from athanor.models.norm import norm
from athanor.models.position_config import Disentangled


class Distances(NamedTuple):
    """vectors: (rows, d_model). rows: (batch or 1, 1, time, attended) int64, the vector of each query and key."""

    vectors: Tensor
    rows: Tensor


class DistanceTable(nn.Module):
    """Vectors from the farthest key ahead to the farthest behind."""

    def __init__(self, d_model: int, config: Disentangled, norms: NormConfig) -> None:
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.empty(2 * config.span, d_model))
        self.norm = norm(d_model, norms if config.normed else None)

    def forward(self, distance: Tensor) -> Distances:
        """distance: (batch or 1, 1, time, attended) int, positive backwards."""
        span = self.config.span
        rows = (self._bucket(distance) + span).clamp(0, 2 * span - 1)
        first, last = int(rows.min()), int(rows.max())
        return Distances(self.norm(self.weight[first : last + 1]), rows - first)

    def _bucket(self, distance: Tensor) -> Tensor:
        """Rounded as the reference rounds, in fp32."""
        if self.config.buckets is None:
            return distance
        exact = self.config.buckets // 2
        far = distance.abs().clamp(min=exact)
        widest = torch.tensor((self.config.farthest - 1) / exact, device=distance.device).log()
        shared = exact + (torch.log(far.float() / exact) / widest * (exact - 1)).ceil().long()
        return torch.where(distance.abs() <= exact, distance, shared * distance.sign())


class DisentangledScores(nn.Module):
    """query, key: matrices for the vectors, where they do not share those for tokens."""

    def __init__(self, d_model: int, width: int, config: Disentangled) -> None:
        super().__init__()
        self.config = config
        own = not config.shared
        self.query = nn.Linear(d_model, width) if own and config.position_to_content else None
        self.key = nn.Linear(d_model, width) if own and config.content_to_position else None

    def forward(self, queries: Tensor, keys: Tensor, distances: Distances, query: nn.Module, key: nn.Module) -> Tensor:
        """What is added to the scores of content, unscaled: (batch, heads, time, attended). queries, keys: (batch,
        heads, time or attended, head_dim). query, key: the layer's matrices for tokens.
        """
        batch, heads, _, dim = queries.shape
        rows = distances.rows.expand(batch, heads, -1, -1)
        added = []
        if self.config.content_to_position:
            made = (key if self.key is None else self.key)(distances.vectors)
            added.append((queries @ made.unflatten(-1, (heads, dim)).permute(1, 2, 0)).gather(-1, rows))
        if self.config.position_to_content:
            made = (query if self.query is None else self.query)(distances.vectors)
            added.append((made.unflatten(-1, (heads, dim)).transpose(0, 1) @ keys.mT).gather(-2, rows))
        return added[0] if len(added) == 1 else added[0] + added[1]
