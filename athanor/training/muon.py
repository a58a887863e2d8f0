"""Muon: steps along the orthogonalised momentum of a matrix (Jordan et al. 2024), many matrices at a time.

Matrices of one shape lie in one stack, whatever layer or expert they belong to, so that the iterations are few large
products instead of many small ones. Deviations: NorMuon's second moment of each row (Li et al. 2025); decay only where
step and weight agree in sign (cautious, Chen et al. 2025); orthogonalisation in fp32 as described at `orthogonalise`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from athanor.training.kernels import kernels_for
from athanor.training.roles import Place, slices

if TYPE_CHECKING:
    from athanor.training.optimizers import OptimizerConfig

# Odd polynomials of degree 9, each the nearest to 1 on what the one before leaves of the singular values from 0.003 to
# 1, in the way of Polar Express (Amsel et al. 2025, arXiv 2505.16932); widened by 1 % for rounding, the last by 0.5 %.
_POLYNOMIALS = (
    (14.6583663262, -140.262045533, 457.131229627, -575.748259817, 245.494529268),
    (6.36781202296, -14.9669824796, 12.5120354867, -4.08145060443, 0.452413151566),
    (3.64576884246, -7.03876396442, 6.42201949525, -2.48816818458, 0.339642124285),
)


# The first five quintics of Polar Express, widened by 1 % but for the last, as its authors have them for bf16.
_QUINTICS = (
    (8.20516041, -22.90193499, 16.46072491),
    (4.06639515, -2.86115409, 0.51839952),
    (3.90959490, -2.82335174, 0.52503698),
    (3.28556402, -2.41530196, 0.48529407),
    (2.30065202, -1.66890398, 0.41880731),
)


def orthogonalise(matrices: Tensor) -> Tensor:
    """(n, rows, columns) → the nearest semi-orthogonal matrices, singular values within about 1 ± 0.13; in the input's
    dtype.

    Each polynomial of x is one of the small Gram matrix times x, so only Gram matrices are iterated on and their
    product is applied at the end. Three polynomials of degree 9 do with 12 products what five of degree 5 need 17 for.
    Since the Gram matrix's square is there, its norm bounds the largest singular value far better than x's own (the
    eighth root of the sum of eighth powers), which leaves fewer singular values too small to be levelled.
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-20)
    gram = x @ x.mT
    square = gram @ gram
    bound = square.norm(dim=(-2, -1), keepdim=True).sqrt_().clamp_min_(1e-6)  # of the squared singular values
    gram, square = gram.div_(bound), square.div_(bound).div_(bound)
    factor: Tensor | None = None
    for number, (a, b, c, d, e) in enumerate(_POLYNOMIALS):
        square = gram @ gram if number else square
        inner = torch.add(gram, square, alpha=e / d).mul_(d)
        inner.diagonal(dim1=-2, dim2=-1).add_(c)
        polynomial = torch.baddbmm(gram, inner, square, beta=b)
        polynomial.diagonal(dim1=-2, dim2=-1).add_(a)
        factor = polynomial if factor is None else polynomial @ factor
        if number + 1 < len(_POLYNOMIALS):
            gram = polynomial @ gram @ polynomial
    assert factor is not None
    x = (factor @ x).div_(bound.sqrt())
    return (x.mT if tall else x).contiguous()


def orthogonalise_in_bf16(matrices: Tensor) -> Tensor:
    """The same in bf16, as which the result stays. A Gram matrix's rounding would lose the squares of small singular
    values, so it is the matrices themselves that are iterated on.
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = (x / (1.01 * x.norm(dim=(-2, -1), keepdim=True)).clamp_min(1e-20)).bfloat16()
    for a, b, c in _QUINTICS:
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).contiguous()


@dataclass
class _Stack:
    """All matrices of one shape. spans: the rows of the stack that each place has."""

    places: list[Place] = field(default_factory=list)
    spans: list[slice] = field(default_factory=list)
    momentum: Tensor = field(default_factory=lambda: torch.empty(0))
    variance: Tensor = field(default_factory=lambda: torch.empty(0))


class Muon:
    """The matrices of a model. `state` has a view of its stack for each parameter, by name."""

    def __init__(self, places: Sequence[Place], config: OptimizerConfig) -> None:
        self.config = config
        self.state: dict[str, Tensor] = {}
        self.stacks: dict[tuple[int, int], _Stack] = defaultdict(_Stack)
        for place in places:
            self.stacks[place.matrices[1:]].places.append(place)
        for shape, stack in self.stacks.items():
            total = sum(place.matrices[0] for place in stack.places)
            like = stack.places[0].parameter
            stack.momentum = like.new_zeros(total, *shape, dtype=torch.float32)
            stack.variance = like.new_zeros(total, shape[0], 1, dtype=torch.float32)
            start = 0
            for place in stack.places:
                span = slice(start, start := start + place.matrices[0])
                stack.spans.append(span)
                self.state[f"{place.name}.momentum"] = stack.momentum[span]
                if config.row_moment:
                    self.state[f"{place.name}.variance"] = stack.variance[span]

    def step(self, number: int, rate: float) -> None:
        for stack in self.stacks.values():
            # What had no gradient, such as a part that the objective does not use, stays as it is.
            moving = [i for i, place in enumerate(stack.places) if place.parameter.grad is not None]
            for part in slices(moving, [stack.places[i].parameter.numel() for i in moving]):
                self._step(stack, part, number, rate)

    def _step(self, stack: _Stack, moving: list[int], number: int, rate: float) -> None:
        config = self.config
        places, spans = [stack.places[i] for i in moving], [stack.spans[i] for i in moving]
        joined = all(one.stop == other.start for one, other in pairwise(spans))
        whole = slice(spans[0].start, spans[-1].stop)
        rows = whole if joined else torch.cat([torch.arange(s.start, s.stop) for s in spans])
        momentum, variance = stack.momentum[rows], stack.variance[rows]
        update, counts = torch.empty_like(momentum), [place.matrices[0] for place in places]
        for place, old, new in zip(places, momentum.split(counts), update.split(counts), strict=True):
            _blend(_gradient(place), old, new, config.momentum_at(number))
        directions, scales = self._directions(update, variance)
        if not joined:  # the rows were copies
            stack.momentum[rows], stack.variance[rows] = momentum, variance
        for place, steps, sizes in zip(places, directions.split(counts), scales.split(counts), strict=True):
            self._move(place.parameter.view(place.matrices), steps, sizes, rate * config.muon_lr)

    def _move(self, weight: Tensor, directions: Tensor, scales: Tensor, rate: float) -> None:
        decay, cautious = self.config.weight_decay, self.config.cautious
        if kernels := kernels_for(weight, directions):
            kernels.move(weight, directions, scales, rate, decay, cautious)
            return
        step = directions * scales
        if decay:
            decayed = (step * weight) > 0 if cautious else torch.ones((), device=step.device)
            step.addcmul_(weight, decayed, value=decay)
        weight.sub_(step, alpha=rate)

    def _directions(self, update: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        """(n, rows, columns) → directions, and what each row (n, rows, 1) of them is to be multiplied with for steps of
        the size of an orthogonal matrix, times √(rows / columns) where that is above 1; `variance` is updated.
        """
        config, (rows, columns) = self.config, update.shape[-2:]
        if config.row_equilibration:  # MuonEq: rows of one length before
            update = update / update.norm(dim=-1, keepdim=True).clamp_min(1e-30)
        update = (orthogonalise_in_bf16 if config.products == "bf16" else orthogonalise)(update)
        squares = torch.linalg.vector_norm(update, dim=-1, keepdim=True, dtype=torch.float32).square_()
        scales = torch.ones_like(squares)
        if config.row_moment:
            variance.lerp_(squares / columns, 1 - config.muon_beta2)
            scales = variance.clamp_min(1e-10).rsqrt()
        if config.row_moment or config.renormalise:
            # Muon+ gives the step the exact size of an orthogonal matrix; NorMuon alone keeps the one that it had.
            wanted = min(rows, columns) ** 0.5 if config.renormalise else squares.sum(-2, keepdim=True).sqrt()
            found = (squares * scales.square()).sum(-2, keepdim=True).sqrt()
            scales = scales * (wanted / found.clamp_min(1e-7))
        return update, scales * max(1.0, rows / columns) ** 0.5


def _blend(gradient: Tensor, momentum: Tensor, update: Tensor, kept: float) -> None:
    if kernels := kernels_for(gradient, momentum, update):
        kernels.blend(gradient, momentum, update, kept)
    else:
        momentum.lerp_(gradient, 1 - kept)
        torch.lerp(gradient, momentum, kept, out=update)


def _gradient(place: Place) -> Tensor:
    assert place.parameter.grad is not None
    return place.parameter.grad.reshape(place.matrices).float()
