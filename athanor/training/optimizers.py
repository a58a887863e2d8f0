"""Optimizers behind one interface: Muon for the matrices with AdamW for the rest, AdamW alone, or Lion alone.

What a parameter is (`training.roles`) decides its rate and its decay; frozen parameters have no state, and a parameter
without a gradient stays as it is. State is a flat dictionary of tensors under the parameters' own names.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from athanor.training.kernels import kernels_for
from athanor.training.muon import Muon
from athanor.training.roles import Place, places, slices

Kind = Literal["muon", "adamw", "lion"]
Products = Literal["fp32", "bf16"]
KINDS: tuple[Kind, ...] = ("muon", "adamw", "lion")
RATES = ("muon_lr", "adam_lr", "head_lr", "embedding_lr", "gain_lr", "bias_lr")  # of `OptimizerConfig`

_WIDTH = 256  # inputs of a matrix that adam_lr and head_lr are said for
# Lion's steps have the full rate in every entry, Adam's about a fifth of it; decay grows by what the rate shrinks
# (Chen et al. 2023, arXiv 2302.06675, section 5).
_LION = 0.2
_LION_BETAS = (0.9, 0.99)


@dataclass(frozen=True)
class OptimizerConfig:
    """Learning rates at the peak of the schedule, and what they are relative to.

    muon_lr: of the matrices between hidden states under Muon; a step of 1 has the size of an orthogonal matrix, times
    √(rows / columns) where that is above 1. adam_lr: of the same under AdamW and Lion. head_lr: of an untied head's
    and the routers' matrices. embedding_lr: of the tables, absolute, for tables that begin with deviation 0.8.
    gain_lr: of the norms' gains, relative to their size. bias_lr: of the biases, absolute. Lion takes a fifth of each.

    Across widths (Yang et al. 2022, muP; Yang et al. 2023, spectral condition) a change of a matrix must keep its
    spectral norm: Muon's does by construction, and Adam's with rates of one over the inputs, so adam_lr and head_lr
    are said for 256 inputs and scaled here. embedding_lr, gain_lr and bias_lr do not depend on the width. Across
    batches nothing is scaled here: rates that suit B tokens a batch suit c·B at √c of their value, decay at 1/√c.

    momentum_warmup: steps in which the momentum rises from 0.85. row_equilibration, row_moment, renormalise: MuonEq,
    NorMuon, Muon+. products: what Muon's are computed in. cautious: decay only where it goes with the step.
    weight_decay: of matrices, head and routers; table_decay: of tables; both are multiplied by the rate.
    """

    muon_lr: float = 0.015
    embedding_lr: float = 0.2
    gain_lr: float = 0.004
    momentum: float = 0.95
    muon_beta2: float = 0.95
    adam_betas: tuple[float, float] = (0.8, 0.95)
    adam_epsilon: float = 1e-10
    weight_decay: float = 0.1
    kind: Kind = "muon"
    adam_lr: float = 0.004
    head_lr: float = 0.004
    bias_lr: float = 0.004
    table_decay: float = 0.0
    momentum_warmup: int = 0
    row_equilibration: bool = False
    row_moment: bool = True
    renormalise: bool = False
    products: Products = "fp32"
    cautious: bool = True

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind = {self.kind!r} is none of {', '.join(KINDS)}")
        for name in (*RATES, "weight_decay", "table_decay", "momentum_warmup"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} = {getattr(self, name)} is not a number from 0 on")
        for share in (self.momentum, self.muon_beta2, *self.adam_betas):
            if not 0 <= share < 1:
                raise ValueError(f"{share} is not a decay rate from 0 to below 1")

    def momentum_at(self, number: int) -> float:
        """Muon's momentum at step 1, 2, …"""
        if number >= self.momentum_warmup:
            return self.momentum
        start = min(0.85, self.momentum)
        return start + (self.momentum - start) * number / self.momentum_warmup


class Rule(Protocol):
    """Steps some of a model's parameters."""

    state: dict[str, Tensor]

    def step(self, number: int, rate: float) -> None: ...


class Optimizer:
    """Steps a model's parameters from their gradients. `state` is a flat name → tensor dictionary, which is what is
    saved.
    """

    def __init__(self, rules: Sequence[Rule]) -> None:
        self.rules = rules
        self.state: dict[str, Tensor] = {name: tensor for rule in rules for name, tensor in rule.state.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Entries of parameters that are frozen now are left aside. Raises KeyError for one that is missing."""
        for name, tensor in self.state.items():
            tensor.copy_(state[name])

    @torch.no_grad()
    def step(self, number: int, rate: float) -> None:
        """number: 1, 2, … for bias correction; rate: the schedule's factor on learning rates and, with them, decay."""
        for rule in self.rules:
            rule.step(number, rate)


def make_optimizer(model: nn.Module, config: OptimizerConfig) -> Optimizer:
    """For every parameter of the model that is to be trained."""
    trained = [place for place in places(model) if place.parameter.requires_grad]
    if config.kind == "lion":
        return Optimizer([Lion(trained, config)])
    if config.kind == "adamw":
        return Optimizer([AdamW(trained, config)])
    matrices = [place for place in trained if place.role == "matrix"]
    return Optimizer([Muon(matrices, config), AdamW([p for p in trained if p.role != "matrix"], config)])


def _rates(moving: Sequence[Place], config: OptimizerConfig) -> list[float]:
    """AdamW's rate of each, before the schedule's factor."""
    sizes = _sizes([place for place in moving if place.role == "gain" and not place.from_zero])
    rates = {
        "matrix": lambda place: config.adam_lr * _WIDTH / place.inputs,
        "head": lambda place: config.head_lr * _WIDTH / place.inputs,
        "router": lambda place: config.head_lr * _WIDTH / place.inputs,
        "table": lambda place: config.embedding_lr / place.scale,
        "gain": lambda place: config.gain_lr * sizes.get(place.name, 1.0),
        "bias": lambda place: config.bias_lr,
    }
    return [rates[place.role](place) for place in moving]


def _sizes(gains: Sequence[Place]) -> dict[str, float]:
    """The root mean square of each gain, read back from the device at once."""
    if not gains:
        return {}
    found = torch._foreach_norm([p.parameter + p.offset if p.offset else p.parameter for p in gains])
    roots = torch.tensor([p.parameter.numel() for p in gains], dtype=torch.float32).sqrt()
    return dict(zip((place.name for place in gains), (torch.stack(found).cpu() / roots).tolist(), strict=True))


def _decay(place: Place, config: OptimizerConfig) -> float:
    if place.role == "table":
        return config.table_decay
    return config.weight_decay if place.role in ("matrix", "head", "router") else 0.0


def _moving(places: Sequence[Place], config: OptimizerConfig, rate: float) -> Iterator[tuple[list[Place], list[float]]]:
    """Those that have a gradient with their rates, in slices."""
    moving = [place for place in places if place.parameter.grad is not None]
    pairs = list(zip(moving, (rate * lr for lr in _rates(moving, config)), strict=True))
    for part in slices(pairs, [place.parameter.numel() for place in moving]):
        yield [place for place, _ in part], [lr for _, lr in part]


def _numbers(moving: Sequence[Place]) -> tuple[list[Tensor], list[Tensor]]:
    """Parameters, and gradients in fp32."""
    gradients = [place.parameter.grad.float() for place in moving if place.parameter.grad is not None]
    return [place.parameter for place in moving], gradients


class AdamW:
    """Loshchilov and Hutter 2019: the decay goes past the moments."""

    def __init__(self, places: Sequence[Place], config: OptimizerConfig) -> None:
        self.places, self.config = places, config
        self.state = {
            f"{place.name}.{moment}": torch.zeros_like(place.parameter, dtype=torch.float32)
            for place in places
            for moment in ("first", "second")
        }

    def step(self, number: int, rate: float) -> None:
        for moving, rates in _moving(self.places, self.config, rate):
            self._step(moving, rates, number)

    def _step(self, moving: Sequence[Place], rates: Sequence[float], number: int) -> None:
        config, (beta1, beta2) = self.config, self.config.adam_betas
        parameters, gradients = _numbers(moving)
        first = [self.state[f"{place.name}.first"] for place in moving]
        second = [self.state[f"{place.name}.second"] for place in moving]
        _shrink(moving, rates, config)
        torch._foreach_lerp_(first, gradients, 1 - beta1)
        torch._foreach_lerp_(second, torch._foreach_mul(gradients, gradients), 1 - beta2)
        deviations = torch._foreach_div(second, 1 - beta2**number)
        torch._foreach_sqrt_(deviations)
        torch._foreach_add_(deviations, config.adam_epsilon)
        torch._foreach_addcdiv_(parameters, first, deviations, [-lr / (1 - beta1**number) for lr in rates])


class Lion:
    """Chen et al. 2023: the sign of an average of momentum and gradient; half the state of AdamW."""

    def __init__(self, places: Sequence[Place], config: OptimizerConfig) -> None:
        self.places, self.config = places, config
        self.state = {f"{p.name}.momentum": torch.zeros_like(p.parameter, dtype=torch.float32) for p in places}

    def step(self, number: int, rate: float) -> None:
        for moving, rates in _moving(self.places, self.config, rate):
            self._step(moving, rates)

    def _step(self, moving: Sequence[Place], rates: Sequence[float]) -> None:
        beta1, beta2 = _LION_BETAS
        parameters, gradients = _numbers(moving)
        momenta = [self.state[f"{place.name}.momentum"] for place in moving]
        _shrink(moving, rates, self.config)  # by AdamW's rates: a decay five times larger than Lion's own
        steps = torch._foreach_lerp(momenta, gradients, 1 - beta1)
        torch._foreach_sign_(steps)
        torch._foreach_mul_(steps, [-_LION * lr for lr in rates])
        torch._foreach_add_(parameters, steps)
        torch._foreach_lerp_(momenta, gradients, 1 - beta2)


def _shrink(moving: Sequence[Place], rates: Sequence[float], config: OptimizerConfig) -> None:
    for place, lr in zip(moving, rates, strict=True):
        if decay := _decay(place, config):
            place.parameter.mul_(1 - lr * decay)


def clip_gradients(parameters: Iterable[Tensor], largest: float) -> Tensor:
    """Scales all gradients so that their joint norm is at most `largest`; returns the norm before (not finite if any
    entry is not).
    """
    parameters = list(parameters)
    norm = torch.stack([_squares(p.grad) for p in parameters if p.grad is not None]).sum().sqrt().float()
    torch.nn.utils.clip_grads_with_norm_(parameters, largest, norm)
    return norm


def _squares(gradient: Tensor) -> Tensor:
    """Summed in fp64: in fp32 the last bit differed between processes, and clipping carried it into the weights."""
    if kernels := kernels_for(gradient) if gradient.dtype == torch.float32 else None:
        return kernels.squares(gradient)
    return gradient.square().sum(dtype=torch.float64)
