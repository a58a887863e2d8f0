"""Muon for the matrices inside the blocks, AdamW for everything else, as one optimizer with one state.

Muon (Jordan et al. 2024) steps along the orthogonalised momentum. Matrices of one shape are stacked, so that the
Newton-Schulz iterations are few large products instead of many small ones. Deviations: Polar Express coefficients
(Amsel et al. 2025) instead of one quintic; NorMuon's per-row second moment (Li et al. 2025); decay only where step and
weight agree in sign (cautious, Chen et al. 2025).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

# Optimal odd quintics for five steps, widened by 2 % for rounding (Polar Express, arXiv 2505.16932).
_POLAR_EXPRESS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)


@dataclass(frozen=True)
class OptimizerConfig:
    """Learning rates at the peak of the schedule: muon_lr of the matrices in the blocks, whose step of 1 has the size
    of an orthogonal matrix; embedding_lr of embedding and head; gain_lr of the norms' gains, relative to their size.
    """

    muon_lr: float = 0.015
    embedding_lr: float = 0.2
    gain_lr: float = 0.004
    momentum: float = 0.95
    muon_beta2: float = 0.95
    adam_betas: tuple[float, float] = (0.8, 0.95)
    adam_epsilon: float = 1e-10
    weight_decay: float = 0.1

    def __post_init__(self) -> None:
        for name in ("muon_lr", "embedding_lr", "gain_lr", "weight_decay"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} = {getattr(self, name)} is not a number from 0 on")
        for share in (self.momentum, self.muon_beta2, *self.adam_betas):
            if not 0 <= share < 1:
                raise ValueError(f"{share} is not a decay rate from 0 to below 1")


def orthogonalise(matrices: Tensor) -> Tensor:
    """(n, rows, columns) → the nearest semi-orthogonal matrices, singular values within about 1 ± 0.1; in the input's
    dtype.
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT.contiguous() if tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) * 1.02 + 1e-7)
    gram = x @ x.mT
    factor = torch.eye(x.shape[-2], dtype=x.dtype, device=x.device).expand_as(gram)
    for a, b, c in _POLAR_EXPRESS:
        # The quintic is a polynomial of the Gram matrix times x: iterating on the small square ones alone and applying
        # their product at the end saves a quarter of the work on matrices that are not square.
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        polynomial.diagonal(dim1=-2, dim2=-1).add_(a)
        factor = polynomial @ factor
        gram = polynomial @ gram @ polynomial
    x = factor @ x
    return x.mT if tall else x


class MuonAdamW:
    """Steps a model's parameters from their gradients. `state` is a flat name → tensor dictionary, which is what is
    saved.
    """

    def __init__(self, model: nn.Module, config: OptimizerConfig) -> None:
        self.config = config
        self.parameters = dict(model.named_parameters())
        self.stacks: dict[str, list[str]] = defaultdict(list)
        self.singles: list[str] = []
        for name, parameter in self.parameters.items():
            if not parameter.requires_grad:
                continue
            if parameter.dim() == 2 and name.startswith("blocks."):
                self.stacks["x".join(map(str, parameter.shape))].append(name)
            else:
                self.singles.append(name)
        self.state: dict[str, Tensor] = {}
        self._stacked: dict[str, tuple[Tensor, Tensor]] = {}  # momentum and variance, which `state` has views of
        for shape, names in self.stacks.items():
            like = self.parameters[names[0]]
            momentum = like.new_zeros(len(names), *like.shape, dtype=torch.float32)
            variance = like.new_zeros(len(names), like.shape[0], 1, dtype=torch.float32)
            self._stacked[shape] = momentum, variance
            for place, name in enumerate(names):
                self.state[f"{name}.momentum"], self.state[f"{name}.variance"] = momentum[place], variance[place]
        for name in self.singles:
            self.state[f"{name}.first"] = torch.zeros_like(self.parameters[name], dtype=torch.float32)
            self.state[f"{name}.second"] = torch.zeros_like(self.parameters[name], dtype=torch.float32)

    def load_state(self, state: dict[str, Tensor]) -> None:
        for name, tensor in self.state.items():
            tensor.copy_(state[name])

    @torch.no_grad()
    def step(self, number: int, rate: float) -> None:
        """number: 1, 2, … for bias correction; rate: the schedule's factor on learning rates and, with them, decay."""
        for shape, names in self.stacks.items():
            self._muon(shape, names, rate)
        for name in self.singles:
            self._adam(name, number, rate * self._adam_lr(name))

    def _muon(self, shape: str, names: list[str], rate: float) -> None:
        config = self.config
        gradients = torch.stack([self._gradient(name) for name in names])
        momentum, variance = self._stacked[shape]
        momentum.lerp_(gradients, 1 - config.momentum)
        update = orthogonalise(gradients.lerp_(momentum, config.momentum))
        variance.lerp_(update.square().mean(-1, keepdim=True), 1 - config.muon_beta2)
        size = update.norm(dim=(-2, -1), keepdim=True)
        update = update * variance.clamp_min(1e-10).rsqrt()
        update *= size / update.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-7)
        rows, columns = update.shape[-2:]
        lr = rate * config.muon_lr
        update *= max(1.0, rows / columns) ** 0.5
        for name, step in zip(names, update, strict=True):
            parameter = self.parameters[name]
            if config.weight_decay:
                agree = (step * parameter) > 0
                step = step.addcmul(parameter, agree, value=config.weight_decay)
            parameter.sub_(step, alpha=lr)

    def _adam_lr(self, name: str) -> float:
        parameter = self.parameters[name]
        if parameter.dim() > 1:
            return self.config.embedding_lr
        return self.config.gain_lr * float(parameter.square().mean().sqrt())  # a gain moves relative to its size

    def _adam(self, name: str, number: int, lr: float) -> None:
        config = self.config
        beta1, beta2 = config.adam_betas
        parameter, gradient = self.parameters[name], self._gradient(name)
        first = self.state[f"{name}.first"].lerp_(gradient, 1 - beta1)
        second = self.state[f"{name}.second"].lerp_(gradient.square(), 1 - beta2)
        deviation = (second / (1 - beta2**number)).sqrt_().add_(config.adam_epsilon)
        parameter.addcdiv_(first, deviation, value=-lr / (1 - beta1**number))

    def _gradient(self, name: str) -> Tensor:
        gradient = self.parameters[name].grad
        if gradient is None:
            raise RuntimeError(f"{name} has no gradient")
        return gradient.float()


def clip_gradients(parameters: Iterable[Tensor], largest: float) -> Tensor:
    """Scales all gradients so that their joint norm is at most `largest`; returns the norm before (not finite if any
    entry is not).
    """
    parameters = list(parameters)
    # Summed in fp64: in fp32 the last bit differed between processes, and clipping carried it into the weights.
    squares = [p.grad.square().sum(dtype=torch.float64) for p in parameters if p.grad is not None]
    norm = torch.stack(squares).sum().sqrt().float()
    torch.nn.utils.clip_grads_with_norm_(parameters, largest, norm)
    return norm
