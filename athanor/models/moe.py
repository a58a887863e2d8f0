"""Mixture of experts: each token goes through a few of many feed-forward layers.

Tokens are sorted by expert, so that an expert is one product over all of its tokens, and experts without any cost
nothing.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from athanor.models.config import MoeConfig
from athanor.models.mlp import ACTIVATIONS, Mlp


class Router(nn.Module):
    """Which experts a token goes to, and what each counts."""

    def __init__(self, d_model: int, config: MoeConfig) -> None:
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.empty(config.n_experts, d_model))
        self.correction = nn.Parameter(torch.zeros(config.n_experts)) if config.correction else None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x: (tokens, d_model) → experts (tokens, top_k) int64 and their weights, fp32."""
        config = self.config
        logits = F.linear(x.float(), self.weight.float())
        scores = logits.sigmoid() if config.scores == "sigmoid" else logits.softmax(-1)
        wanted = scores if self.correction is None else scores + self.correction
        if config.groups > 1:
            wanted = self._best_groups(wanted)
        chosen = wanted.topk(config.top_k, dim=-1).indices
        weights = scores.gather(1, chosen)
        if config.normalise:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return chosen, weights * config.scale

    def _best_groups(self, wanted: Tensor) -> Tensor:
        """Keeps the groups whose two best experts add up to the most; the others cannot be chosen."""
        grouped = wanted.unflatten(-1, (self.config.groups, -1))
        best = grouped.topk(2, dim=-1).values.sum(-1).topk(self.config.top_groups, dim=-1).indices
        kept = torch.zeros(grouped.shape[:-1], dtype=torch.bool, device=wanted.device).scatter_(1, best, True)
        return grouped.masked_fill(~kept[..., None], -torch.inf).flatten(1)


class Experts(nn.Module):
    """The weights of all experts, stacked: (n_experts, d_ff, d_model) and (n_experts, d_model, d_ff)."""

    def __init__(self, d_model: int, config: MoeConfig) -> None:
        super().__init__()
        expert, n = config.expert, config.n_experts
        self.gate = nn.Parameter(torch.empty(n, expert.d_ff, d_model)) if expert.gated else None
        self.up = nn.Parameter(torch.empty(n, expert.d_ff, d_model))
        self.down = nn.Parameter(torch.empty(n, d_model, expert.d_ff))
        self.activation = ACTIVATIONS[expert.activation]

    def forward(self, x: Tensor, expert: int) -> Tensor:
        up = F.linear(x, self.up[expert])
        inner = self.activation(up) if self.gate is None else self.activation(F.linear(x, self.gate[expert])) * up
        return F.linear(inner, self.down[expert])


class Moe(nn.Module):
    def __init__(self, d_model: int, config: MoeConfig) -> None:
        super().__init__()
        self.config = config
        self.router = Router(d_model, config)
        self.experts = Experts(d_model, config)
        self.shared = Mlp(d_model, config.shared) if config.shared else None

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(0, -2)
        chosen, weights = self.router(tokens)
        if self.config.capacity is not None:
            chosen = self._within(chosen, x.shape[:-1], self.config.capacity)
        order = chosen.flatten().argsort(stable=True)
        counts = chosen.flatten().bincount(minlength=self.config.n_experts).tolist()[: self.config.n_experts]
        rows, weights = order // self.config.top_k, weights.flatten()[order].to(x.dtype)
        mixed = torch.zeros_like(tokens)
        start = 0
        for expert, count in enumerate(counts):
            if count:
                part = rows[start : start + count]
                said = self.experts(tokens[part], expert) * weights[start : start + count, None]
                mixed = mixed.index_add(0, part, said)
                start += count
        if self.shared is not None:
            mixed = mixed + self.shared(tokens)
        return mixed.view_as(x)

    def _within(self, chosen: Tensor, texts: torch.Size, capacity: int) -> Tensor:
        """`chosen` (tokens, top_k) with `n_experts`, which is none, where an expert has had `capacity` tokens of the
        text. texts: (…, time), the tokens' shape.
        """
        n = self.config.n_experts
        taken = F.one_hot(chosen, n).sum(1).unflatten(0, texts).cumsum(-2).flatten(0, -2)
        return chosen.masked_fill(taken.gather(1, chosen) > capacity, n)
