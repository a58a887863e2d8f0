"""Muon and AdamW against plain references written here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from athanor.base.randomness import generator
from athanor.models.decoder import Decoder
from athanor.training.optimizers import MuonAdamW, OptimizerConfig, clip_gradients, orthogonalise


def with_singular_values(rows: int, columns: int, values: Tensor, seed: int) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    left = torch.linalg.qr(torch.randn(rows, rows, generator=random))[0][:, : len(values)]
    right = torch.linalg.qr(torch.randn(columns, columns, generator=random))[0][:, : len(values)]
    return left * values @ right.T


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (8, 8), (16, 64), (64, 16), (96, 95), (128, 32)])
@pytest.mark.parametrize("condition", [1.0, 10.0, 60.0])
@pytest.mark.parametrize("size", [1e-4, 1.0, 1e4])
def test_orthogonalised_singular_values_are_near_one_and_its_directions_kept(
    shape: tuple[int, int], condition: float, size: float
) -> None:
    values = torch.logspace(0, -float(np.log10(condition)), min(shape))
    matrices = torch.stack([size * with_singular_values(*shape, values, seed) for seed in range(3)])
    result = orthogonalise(matrices)
    singular = torch.linalg.svdvals(result)
    assert 0.7 <= singular.min() <= singular.max() <= 1.3
    for matrix, got in zip(matrices.double(), result.double(), strict=True):
        left, _, right = torch.linalg.svd(matrix, full_matrices=False)
        nearest = left @ right
        assert torch.nn.functional.cosine_similarity(nearest.flatten(), got.flatten(), dim=0) > 0.98


def test_orthogonalising_nothing_gives_nothing() -> None:
    assert torch.isfinite(orthogonalise(torch.zeros(2, 4, 6))).all()


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            [nn.Linear(6, 10, bias=False), nn.Linear(6, 10, bias=False), nn.Linear(10, 4, bias=False)]
        )
        self.embedding = nn.Parameter(torch.ones(5, 6))
        self.norm = nn.Parameter(torch.ones(6))
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                parameter.copy_(noise(name, parameter.shape))


def noise(*purpose: object) -> Tensor:
    *path, shape = purpose
    return torch.from_numpy(generator(0, *map(str, path)).standard_normal(tuple(shape), dtype=np.float32))  # type: ignore[call-overload]


def give_gradients(model: nn.Module, step: int) -> dict[str, Tensor]:
    gradients = {name: noise(name, step, parameter.shape) for name, parameter in model.named_parameters()}
    for name, parameter in model.named_parameters():
        parameter.grad = gradients[name].clone()
    return gradients


CONFIG = OptimizerConfig(muon_lr=0.02, embedding_lr=0.05, gain_lr=0.01, momentum=0.9, muon_beta2=0.8, weight_decay=0.3)


def muon_reference(weight: Tensor, gradients: Iterator[tuple[Tensor, float]]) -> Tensor:
    """One matrix at a time, as the papers write it down."""
    momentum, variance = torch.zeros_like(weight), torch.zeros(weight.shape[0], 1)
    for gradient, rate in gradients:
        momentum = CONFIG.momentum * momentum + (1 - CONFIG.momentum) * gradient
        nesterov = (1 - CONFIG.momentum) * gradient + CONFIG.momentum * momentum
        update = orthogonalise(nesterov[None])[0]
        variance = CONFIG.muon_beta2 * variance + (1 - CONFIG.muon_beta2) * (update**2).mean(1, keepdim=True)
        scaled = update / variance.clamp_min(1e-10).sqrt()
        scaled = scaled * update.norm() / scaled.norm() * max(1, weight.shape[0] / weight.shape[1]) ** 0.5
        cautious = torch.where(scaled * weight > 0, weight, torch.zeros(()))
        weight = weight - rate * CONFIG.muon_lr * (scaled + CONFIG.weight_decay * cautious)
    return weight


def test_steps_equal_plain_references() -> None:
    model, peer = Pair(), Pair()
    optimizer = MuonAdamW(model, CONFIG)
    groups: list[dict[str, Any]] = [{"params": [peer.embedding]}, {"params": [peer.norm]}]
    adam = torch.optim.AdamW(groups, betas=CONFIG.adam_betas, eps=CONFIG.adam_epsilon, weight_decay=0)
    starts = {name: p.detach().clone() for name, p in model.named_parameters()}
    rates = [1.0, 0.5, 0.25, 1.0]
    history = []
    for step, rate in enumerate(rates, start=1):
        history.append(give_gradients(model, step))
        optimizer.step(step, rate)
        peer.norm.grad, peer.embedding.grad = history[-1]["norm"].clone(), history[-1]["embedding"].clone()
        adam.param_groups[0]["lr"] = rate * CONFIG.embedding_lr
        adam.param_groups[1]["lr"] = rate * CONFIG.gain_lr * peer.norm.square().mean().sqrt().item()
        adam.step()
    torch.testing.assert_close(model.norm, peer.norm, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(model.embedding, peer.embedding, atol=1e-6, rtol=1e-5)
    for name, parameter in model.named_parameters():
        if name.startswith("blocks"):
            pairs = zip((gradients[name] for gradients in history), rates, strict=True)
            torch.testing.assert_close(parameter, muon_reference(starts[name], pairs), atol=1e-5, rtol=1e-4)


def test_weight_decay_never_works_against_the_step() -> None:
    moved = []
    for decay in (0.0, 0.3):
        model = Pair()
        give_gradients(model, 1)
        before = model.blocks[0].weight.detach().clone()
        MuonAdamW(model, replace(CONFIG, weight_decay=decay)).step(1, 1.0)
        moved.append(before - model.blocks[0].weight.detach())
    step, with_decay = moved
    agree = step * Pair().blocks[0].weight.detach() > 0
    assert 0 < agree.float().mean() < 1
    assert torch.equal(with_decay[~agree], step[~agree])
    assert (with_decay[agree].abs() > step[agree].abs()).all()


def test_the_embedding_and_vectors_go_to_adam_and_the_matrices_to_muon(make_model: Callable[[int], Decoder]) -> None:
    optimizer = MuonAdamW(make_model(0), OptimizerConfig())
    assert all(name == "embedding.tokens.weight" or "norm" in name for name in optimizer.singles)
    assert sum(map(len, optimizer.stacks.values())) == 2 * 7


def test_state_round_trip_continues_exactly(make_model: Callable[[int], Decoder]) -> None:
    def step(optimizer: MuonAdamW, model: Decoder, number: int) -> None:
        give_gradients(model, number)
        optimizer.step(number, 1.0)

    whole = make_model(0)
    optimizer = MuonAdamW(whole, OptimizerConfig())
    for number in (1, 2, 3):
        step(optimizer, whole, number)
    weights = {name: p.detach().clone() for name, p in whole.named_parameters()}
    state = {name: tensor.clone() for name, tensor in optimizer.state.items()}
    step(optimizer, whole, 4)
    resumed = make_model(1)
    resumed.load_state_dict(weights)
    continued = MuonAdamW(resumed, OptimizerConfig())
    continued.load_state(state)
    step(continued, resumed, 4)
    for name, parameter in whole.named_parameters():
        assert torch.equal(parameter, dict(resumed.named_parameters())[name]), name


@pytest.mark.parametrize("largest", [0.5, 1e9])
def test_clipping_bounds_the_joint_norm_of_a_generator_of_parameters(largest: float) -> None:
    model = Pair()
    give_gradients(model, 1)
    before = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    norm = clip_gradients(model.parameters(), largest)
    after = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    assert norm == pytest.approx(before.norm().item())
    torch.testing.assert_close(after, before * min(1.0, largest / before.norm().item()))


def test_a_norm_that_is_not_finite_is_reported() -> None:
    model = Pair()
    give_gradients(model, 1)
    assert model.norm.grad is not None
    model.norm.grad[0] = float("nan")
    assert not torch.isfinite(clip_gradients(model.parameters(), 1.0))
