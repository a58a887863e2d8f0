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
from athanor.models.config import NormConfig
from athanor.models.decoder import Decoder
from athanor.models.moe import Experts, Router
from athanor.models.norm import LayerNorm, RMSNorm
from athanor.training import roles
from athanor.training.muon import Muon, orthogonalise, orthogonalise_in_bf16
from athanor.training.optimizers import AdamW, Kind, Optimizer, OptimizerConfig, clip_gradients, make_optimizer


def with_singular_values(rows: int, columns: int, values: Tensor, seed: int) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    left = torch.linalg.qr(torch.randn(rows, rows, generator=random))[0][:, : len(values)]
    right = torch.linalg.qr(torch.randn(columns, columns, generator=random))[0][:, : len(values)]
    return left * values @ right.T


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (8, 8), (16, 64), (64, 16), (96, 95), (128, 32)])
@pytest.mark.parametrize("condition", [1.0, 10.0, 60.0])
@pytest.mark.parametrize("size", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize("way", [orthogonalise, orthogonalise_in_bf16])
def test_orthogonalised_singular_values_are_near_one_and_its_directions_kept(
    shape: tuple[int, int], condition: float, size: float, way: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    values = torch.logspace(0, -float(np.log10(condition)), min(shape))
    matrices = torch.stack([size * with_singular_values(*shape, values, seed) for seed in range(3)])
    result = way(matrices)
    assert result.dtype == (torch.float32 if way is orthogonalise else torch.bfloat16)
    singular = torch.linalg.svdvals(result.float())
    assert 0.7 <= singular.min() <= singular.max() <= 1.3
    for matrix, got in zip(matrices.double(), result.double(), strict=True):
        left, _, right = torch.linalg.svd(matrix, full_matrices=False)
        nearest = left @ right
        assert torch.nn.functional.cosine_similarity(nearest.flatten(), got.flatten(), dim=0) > 0.98


@pytest.mark.parametrize("kind", ["muon", "adamw", "lion"])
def test_steps_in_slices_give_the_same_bits(
    kind: Kind, make_model: Callable[[int], Decoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    models = []
    for most in (1 << 23, 1500):  # two or three of the matrices
        monkeypatch.setattr(roles, "_SLICE", most)
        model = make_model(0)
        optimizer = make_optimizer(model, OptimizerConfig(kind=kind))
        for step in (1, 2):
            give_gradients(model, step)
            optimizer.step(step, 1.0)
        models.append(model)
    for one, other in zip(*(model.parameters() for model in models), strict=True):
        assert torch.equal(one, other)


def test_orthogonalising_nothing_gives_nothing() -> None:
    for way in (orthogonalise, orthogonalise_in_bf16):
        assert torch.isfinite(way(torch.zeros(2, 4, 6))).all()


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            [nn.Linear(6, 10, bias=False), nn.Linear(6, 10, bias=False), nn.Linear(10, 4, bias=False)]
        )
        self.table = nn.Embedding(5, 6)
        self.gain = RMSNorm(6, NormConfig(1e-6))
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
    optimizer = make_optimizer(model, CONFIG)
    groups: list[dict[str, Any]] = [{"params": [peer.table.weight]}, {"params": [peer.gain.weight]}]
    adam = torch.optim.AdamW(groups, betas=CONFIG.adam_betas, eps=CONFIG.adam_epsilon, weight_decay=0)
    starts = {name: p.detach().clone() for name, p in model.named_parameters()}
    rates = [1.0, 0.5, 0.25, 1.0]
    history = []
    for step, rate in enumerate(rates, start=1):
        history.append(give_gradients(model, step))
        optimizer.step(step, rate)
        peer.gain.weight.grad = history[-1]["gain.weight"].clone()
        peer.table.weight.grad = history[-1]["table.weight"].clone()
        adam.param_groups[0]["lr"] = rate * CONFIG.embedding_lr
        adam.param_groups[1]["lr"] = rate * CONFIG.gain_lr * peer.gain.weight.square().mean().sqrt().item()
        adam.step()
    torch.testing.assert_close(model.gain.weight, peer.gain.weight, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(model.table.weight, peer.table.weight, atol=1e-6, rtol=1e-5)
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
        make_optimizer(model, replace(CONFIG, weight_decay=decay)).step(1, 1.0)
        moved.append(before - model.blocks[0].weight.detach())
    step, with_decay = moved
    agree = step * Pair().blocks[0].weight.detach() > 0
    assert 0 < agree.float().mean() < 1
    assert torch.equal(with_decay[~agree], step[~agree])
    assert (with_decay[agree].abs() > step[agree].abs()).all()


def test_the_embedding_and_vectors_go_to_adam_and_the_matrices_to_muon(make_model: Callable[[int], Decoder]) -> None:
    muon, adam = make_optimizer(make_model(0), OptimizerConfig()).rules
    assert isinstance(muon, Muon)
    assert isinstance(adam, AdamW)
    assert all(p.name == "embedding.tokens.weight" or "norm" in p.name for p in adam.places)
    assert sum(len(stack.places) for stack in muon.stacks.values()) == 2 * 7


def run(model: nn.Module, optimizer: Optimizer, steps: range) -> None:
    for number in steps:
        give_gradients(model, number)
        optimizer.step(number, 1.0)


def values(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("kind", ["muon", "adamw", "lion"])
def test_state_round_trip_continues_exactly(kind: Any, make_model: Callable[[int], Decoder]) -> None:
    config = OptimizerConfig(kind=kind, momentum_warmup=6)
    whole = make_model(0)
    optimizer = make_optimizer(whole, config)
    run(whole, optimizer, range(1, 4))
    weights, state = values(whole), {name: tensor.clone() for name, tensor in optimizer.state.items()}
    run(whole, optimizer, range(4, 6))
    resumed = make_model(1)
    resumed.load_state_dict(weights)
    continued = make_optimizer(resumed, config)
    continued.load_state(state)
    run(resumed, continued, range(4, 6))
    for name, parameter in whole.named_parameters():
        assert torch.equal(parameter, dict(resumed.named_parameters())[name]), name


def test_state_is_named_after_its_parameter(make_model: Callable[[int], Decoder]) -> None:
    model = make_model(0)
    names = dict(model.named_parameters())
    for kind in ("muon", "adamw", "lion"):
        state = make_optimizer(model, OptimizerConfig(kind=kind)).state
        assert {name.rpartition(".")[0] for name in state} == set(names)
        for name, tensor in state.items():
            owner, _, what = name.rpartition(".")
            assert what == "variance" or tensor.numel() == names[owner].numel()


def test_frozen_parameters_have_no_state_and_others_resume_beside_them(make_model: Callable[[int], Decoder]) -> None:
    whole = make_model(0)
    optimizer = make_optimizer(whole, OptimizerConfig())
    run(whole, optimizer, range(1, 3))
    frozen = make_model(0)
    frozen.load_state_dict(values(whole))
    frozen.blocks[0].requires_grad_(False)
    continued = make_optimizer(frozen, OptimizerConfig())
    assert not any(name.startswith("blocks.0.") for name in continued.state)
    continued.load_state(optimizer.state)
    run(whole, optimizer, range(3, 5))
    run(frozen, continued, range(3, 5))
    for name, parameter in frozen.named_parameters():
        assert torch.equal(parameter, dict(whole.named_parameters())[name]) != name.startswith("blocks.0."), name


@pytest.mark.parametrize("kind", ["muon", "adamw", "lion"])
def test_a_parameter_without_a_gradient_stays_and_the_others_step_as_without_it(kind: Any) -> None:
    one, other = Pair(), Pair()
    optimizers = [make_optimizer(model, OptimizerConfig(kind=kind)) for model in (one, other)]
    for number in range(1, 4):
        for model, optimizer in zip((one, other), optimizers, strict=True):
            give_gradients(model, number)
            if model is one and number == 2:
                model.blocks[0].weight.grad = None
            before = model.blocks[0].weight.detach().clone()
            optimizer.step(number, 1.0)
            still = torch.equal(before, model.blocks[0].weight)
            assert still == (model is one and number == 2)
    for name, parameter in one.named_parameters():
        if name != "blocks.0.weight":
            torch.testing.assert_close(parameter, dict(other.named_parameters())[name], atol=1e-6, rtol=1e-5)
    for model in (one, other):
        model.zero_grad(set_to_none=True)
    unmoved = values(one)
    optimizers[0].step(4, 1.0)
    assert all(torch.equal(value, unmoved[name]) for name, value in values(one).items())


def test_adamw_is_torch_s() -> None:
    config = replace(CONFIG, kind="adamw", adam_lr=0.01, table_decay=0.2)
    model, peer = Pair(), Pair()
    optimizer = make_optimizer(model, config)
    wide, long = config.adam_lr * 256 / 6, config.adam_lr * 256 / 10
    groups: list[dict[str, Any]] = [
        {"params": [peer.blocks[0].weight, peer.blocks[1].weight], "lr": wide, "weight_decay": 0.3},
        {"params": [peer.blocks[2].weight], "lr": long, "weight_decay": 0.3},
        {"params": [peer.table.weight], "lr": config.embedding_lr, "weight_decay": 0.2},
        {"params": [peer.gain.weight], "weight_decay": 0.0},
    ]
    adam = torch.optim.AdamW(groups, betas=config.adam_betas, eps=config.adam_epsilon, foreach=False)
    for number in range(1, 6):
        give_gradients(model, number)
        give_gradients(peer, number)
        adam.param_groups[3]["lr"] = config.gain_lr * peer.gain.weight.square().mean().sqrt().item()
        optimizer.step(number, 1.0)
        adam.step()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter, dict(peer.named_parameters())[name], atol=1e-6, rtol=1e-6)


def test_lion_is_its_formula() -> None:
    config = replace(CONFIG, kind="lion", adam_lr=0.01)
    model = Pair()
    optimizer = make_optimizer(model, config)
    weight, momentum = model.blocks[0].weight.detach().clone(), torch.zeros(10, 6)
    lr, decay = 0.2 * 0.01 * 256 / 6, 5 * 0.3
    for number, rate in enumerate((1.0, 0.5, 0.25), start=1):
        gradient = give_gradients(model, number)["blocks.0.weight"]
        optimizer.step(number, rate)
        update = torch.sign(0.9 * momentum + 0.1 * gradient)
        weight = weight - rate * lr * (update + decay * weight)
        momentum = 0.99 * momentum + 0.01 * gradient
    torch.testing.assert_close(model.blocks[0].weight, weight, atol=1e-6, rtol=1e-5)


class Zeros(nn.Module):
    """A layer norm of which gain and bias are zero, experts, and their router."""

    def __init__(self) -> None:
        super().__init__()
        from athanor.models.config import MlpConfig, MoeConfig

        config = MoeConfig(n_experts=3, top_k=1, expert=MlpConfig(8))
        self.norm = LayerNorm(4, NormConfig(1e-5, "layer", True))
        self.experts, self.router = Experts(4, config), Router(4, config)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                parameter.copy_(noise(name, parameter.shape))
            self.norm.bias.zero_()  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", ["muon", "adamw", "lion"])
def test_zero_biases_move(kind: Any) -> None:
    model = Zeros()
    optimizer = make_optimizer(model, OptimizerConfig(kind=kind, bias_lr=0.01))
    run(model, optimizer, range(1, 2))
    assert model.norm.bias is not None
    expected = 0.01 * (0.2 if kind == "lion" else 1.0)
    assert model.norm.bias.abs().tolist() == pytest.approx([expected] * 4, rel=1e-3)


def test_experts_step_as_so_many_matrices() -> None:
    model = Zeros()
    start, config = values(model), replace(CONFIG)
    optimizer = make_optimizer(model, config)
    gradients = []
    for number in (1, 2):
        gradients.append(give_gradients(model, number)["experts.up"])
        gradients[-1][1] = 0.0  # nobody chose it
        model.experts.up.grad = gradients[-1].clone()
        optimizer.step(number, 1.0)
    for expert in range(3):
        wanted = muon_reference(start["experts.up"][expert], iter((g[expert], 1.0) for g in gradients))
        if expert == 1:
            torch.testing.assert_close(model.experts.up[expert], start["experts.up"][expert])
        else:
            torch.testing.assert_close(model.experts.up[expert], wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"row_moment": False, "cautious": False, "weight_decay": 0.0}, "plain"),
        ({"row_moment": False, "renormalise": True, "weight_decay": 0.0}, "unit"),
        ({"row_moment": False, "row_equilibration": True, "weight_decay": 0.0}, "rows"),
    ],
)
def test_variants_of_muon(changes: dict[str, Any], expected: str) -> None:
    """The first step, against the papers' order of things."""
    model = Pair()
    before = model.blocks[2].weight.detach().clone()
    gradient = give_gradients(model, 1)["blocks.2.weight"]
    make_optimizer(model, replace(CONFIG, **changes)).step(1, 1.0)
    if expected == "rows":
        gradient = gradient / gradient.norm(dim=1, keepdim=True)
    wanted = orthogonalise(gradient[None])[0]
    if expected == "unit":
        wanted = wanted * 4**0.5 / wanted.norm()
    torch.testing.assert_close(before - model.blocks[2].weight, CONFIG.muon_lr * wanted, atol=1e-6, rtol=1e-4)


def test_momentum_warms_up() -> None:
    config = OptimizerConfig(momentum_warmup=10)
    found = [config.momentum_at(number) for number in (1, 5, 10, 11, 1000)]
    assert found == pytest.approx([0.86, 0.90, 0.95, 0.95, 0.95])
    assert OptimizerConfig().momentum_at(1) == 0.95


@pytest.mark.parametrize("settings", [{"kind": "sgd"}, {"muon_lr": -1.0}, {"momentum": 1.0}, {"bias_lr": float("nan")}])
def test_settings_that_cannot_be(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"sgd|-1|1\.0|nan"):
        OptimizerConfig(**settings)


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
    assert model.gain.weight.grad is not None
    model.gain.weight.grad[0] = float("nan")
    assert not torch.isfinite(clip_gradients(model.parameters(), 1.0))
