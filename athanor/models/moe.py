"""Mixture of experts: each token goes through a few of many feed-forward layers.

Tokens are sorted by expert, so that an expert is one product over all of its tokens, and experts without any cost
nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from athanor.models.config import MoeConfig
from athanor.models.mlp import ACTIVATIONS, Mlp
from athanor.models.precision import for_products


class Router(nn.Module):
    """Which experts a token goes to, and what each counts."""

    def __init__(self, d_model: int, config: MoeConfig) -> None:
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.empty(config.n_experts, d_model))
        self.watch: Callable[[Tensor, Tensor], None] | None = None  # is told the logits and choices of each pass
        self.correction = nn.Parameter(torch.zeros(config.n_experts)) if config.correction else None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x: (tokens, d_model) → experts (tokens, top_k) int64 and their weights, fp32."""
        config = self.config
        with torch.autocast(x.device.type, enabled=False):  # in bf16 close experts change places
            logits = F.linear(x.float(), self.weight.float())
        scores = logits.sigmoid() if config.scores == "sigmoid" else logits.softmax(-1)
        wanted = scores if self.correction is None else scores + self.correction
        if config.groups > 1:
            wanted = self._best_groups(wanted)
        chosen = wanted.topk(config.top_k, dim=-1).indices
        if self.watch is not None:
            self.watch(logits, chosen)
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

    def forward(self, x: Tensor, counts: Tensor) -> Tensor:
        """x: (rows, d_model), those of the first expert first. counts: (n_experts,) rows of each."""
        up = by_expert(x, self.up, counts)
        inner = self.activation(up) if self.gate is None else self.activation(by_expert(x, self.gate, counts)) * up
        return by_expert(inner, self.down, counts)


def by_expert(x: Tensor, weights: Tensor, counts: Tensor) -> Tensor:
    """Each row of x (rows, in) times the matrix of its expert, of weights (n_experts, out, in)."""
    x, weights = for_products(x), for_products(weights)
    if _can_group(x, weights):
        return F.grouped_mm(x, weights.mT, offs=counts.cumsum(0, dtype=torch.int32))
    parts = zip(x.split(counts.tolist()), weights, strict=True)
    return torch.cat([F.linear(part, weight) for part, weight in parts])


def _can_group(x: Tensor, weights: Tensor) -> bool:
    """torch's grouped product wants rows of a multiple of 16 bytes."""
    known = x.dtype in (torch.float32, torch.float16, torch.bfloat16)
    return known and all(side * x.element_size() % 16 == 0 for side in weights.shape[1:])


class Moe(nn.Module):
    def __init__(self, d_model: int, config: MoeConfig) -> None:
        super().__init__()
        self.config = config
        self.router = Router(d_model, config)
        self.experts = Experts(d_model, config)
        self.shared = Mlp(d_model, config.shared) if config.shared else None

    def forward(self, x: Tensor) -> Tensor:
        n, k, tokens = self.config.n_experts, self.config.top_k, x.flatten(0, -2)
        chosen, weights = self.router(tokens)
        if self.config.capacity is not None:
            weights = weights * self._within(chosen, x.shape[:-1], self.config.capacity)
        order = chosen.flatten().argsort(stable=True)
        said = self.experts(tokens[order // k], chosen.flatten().bincount(minlength=n))
        place = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
        mixed = (said[place].unflatten(0, (-1, k)) * weights[..., None].to(said.dtype)).sum(1)
        if self.shared is not None:
            mixed = mixed + self.shared(tokens)
        return mixed.view_as(x)

    def _within(self, chosen: Tensor, texts: torch.Size, capacity: int) -> Tensor:
        """(tokens, top_k) bool: whether the expert has had less than `capacity` tokens of the text before. texts:
        (…, time), the tokens' shape.
        """
        taken = F.one_hot(chosen, self.config.n_experts).sum(1).unflatten(0, texts).cumsum(-2).flatten(0, -2)
        return taken.gather(1, chosen) <= capacity
