"""Experts that are used evenly: what is added to an objective of a model with experts, and the bias that needs no loss.

The auxiliary loss is Switch Transformer's (Fedus et al. 2022; over the top k as in Mixtral), the router's z-loss
ST-MoE's (Zoph et al. 2022), the bias DeepSeek-V3's (Wang et al. 2024): after each step, an expert that was given more
than its share is made less eligible by a fixed amount, and the others more. Padding counts nowhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from athanor.base.errors import ModelError
from athanor.models.moe import Router
from athanor.training.objectives.loss import Loss
from athanor.training.parallel import ALONE, Group


class ExpertBalance:
    """Wraps an objective, and is one itself; give `after_step` to the Trainer where `bias_rate` is not zero.

    auxiliary, z: weights of the two losses. bias_rate: what a router's correction moves a step; this needs
    MoeConfig(correction=True). group: of processes whose loads are counted together. The metric `expert_load` is the
    load of the fullest expert over the mean, averaged over the routers; 1 is even.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Callable[[Any, Any], Loss],
        *,
        auxiliary: float = 0.01,
        z: float = 0.001,
        bias_rate: float = 0.0,
        group: Group = ALONE,
    ) -> None:
        self.routers = {name: part for name, part in model.named_modules() if isinstance(part, Router)}
        self.objective, self.auxiliary, self.z, self.bias_rate = objective, auxiliary, z, bias_rate
        self.group = group
        if not self.routers:
            raise ModelError("The model has no experts to balance.", "Give one of its layers a MoeConfig.")
        for router in self.routers.values():
            if bias_rate and router.correction is None:
                raise ModelError("The experts have no bias to balance them by.", "Set correction=True in MoeConfig.")
            if router.correction is not None:
                router.correction.requires_grad_(False)  # it is moved by the loads alone
        self._loads = {name: torch.zeros(router.config.n_experts) for name, router in self.routers.items()}

    def __call__(self, model: nn.Module, batch: Any) -> Loss:
        seen: dict[str, tuple[Tensor, Tensor]] = {}
        with self._watching(seen):
            loss = self.objective(model, batch)
        added, load = loss.sum.new_zeros(()), 0.0
        for name, (logits, chosen) in seen.items():
            valid = _valid(name, batch).flatten()
            logits, chosen = logits[valid], chosen[valid]
            added = added + self.auxiliary * load_balance(logits, chosen) + self.z * router_z(logits)
            counts = chosen.flatten().bincount(minlength=logits.shape[-1]).float()
            if loss.count and torch.is_grad_enabled():  # neither of a measurement, nor of rows that stand in for others
                self._loads[name] += counts.cpu()
            load += float(counts.max() / counts.mean())
        metrics = {"balance": float(added.detach()), "expert_load": load / len(seen)}
        metrics = {name: value * loss.count for name, value in metrics.items()}
        return Loss(loss.sum + added * loss.count, loss.count, {**loss.metrics, **metrics})

    @contextmanager
    def _watching(self, seen: dict[str, tuple[Tensor, Tensor]]) -> Iterator[None]:
        def note(name: str, logits: Tensor, chosen: Tensor) -> None:
            seen[name] = logits, chosen

        for name, router in self.routers.items():
            router.watch = partial(note, name)
        try:
            yield
        finally:
            for router in self.routers.values():
                router.watch = None

    @torch.no_grad()
    def after_step(self, model: nn.Module, learnt: bool = True) -> None:
        """Moves the biases by the loads since the last call; forgets them after a step that was left out."""
        own = list(self._loads.values())
        together = torch.tensor(self.group.sums(torch.cat(own).tolist()))
        for router, loads in zip(self.routers.values(), together.split([len(one) for one in own]), strict=True):
            if learnt and self.bias_rate and router.correction is not None and loads.sum():
                _move(router.correction, self.bias_rate * (loads.mean() - loads).sign())
        for one in own:
            one.zero_()


def _move(parameter: Any, by: Tensor) -> None:
    """Adds; where each process has a part of the parameter, to that."""
    by = by.to(parameter.device, parameter.dtype)
    if hasattr(parameter, "device_mesh"):
        from torch.distributed.tensor import distribute_tensor

        by = distribute_tensor(by, parameter.device_mesh, parameter.placements, src_data_rank=None)
    parameter.add_(by)


def _valid(router: str, batch: Any) -> Tensor:
    """(rows, time) bool, what the router was given that is no padding."""
    ids: Tensor = batch.source_document_ids if router.startswith("encoder.") else batch.document_ids
    return ids >= 0


def load_balance(logits: Tensor, chosen: Tensor) -> Tensor:
    """Experts × Σ over experts of (share of the tokens sent to it × mean probability of it): 1 times k where even.

    logits: (tokens, experts); chosen: (tokens, k).
    """
    n_experts = logits.shape[-1]
    shares = chosen.flatten().bincount(minlength=n_experts) / len(chosen)
    return n_experts * (shares * logits.softmax(-1).mean(0)).sum()


def router_z(logits: Tensor) -> Tensor:
    """The mean squared log of the routers' partition functions; logits: (tokens, experts)."""
    return logits.logsumexp(-1).square().mean()
