"""What each parameter is, in models of every kind; and all of them can be stepped."""

from __future__ import annotations

import copy
from collections import Counter
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn

import athanor.models as models
from athanor.training.optimizers import KINDS, OptimizerConfig, make_optimizer
from athanor.training.roles import places
from tests.models.family_rows import DECODERS, ENCODERS, PAIRS

ROWS = {**DECODERS, **ENCODERS, **PAIRS}
SOME = (
    "gpt2", "opt, 350M", "mixtral", "deepseek_v3", "gemma2", "bert, both heads",
    "albert, masked words", "modernbert, masked words", "electra, discriminator",
    "deberta_v2, as v2, convolution", "t5", "t5 1.1", "bart", "marian", "switch",
)  # fmt: skip


@cache
def made(row: str) -> Any:
    transformers = pytest.importorskip("transformers")
    from athanor.models.families import read_config

    architecture, settings = ROWS[row]
    settings = getattr(transformers, architecture).config_class(**settings).to_dict()
    return models.new(read_config({**settings, "architectures": [architecture]}, row)[1], 0)


@pytest.mark.parametrize("row", ROWS)
def test_every_parameter_of_every_family_has_one_role(row: str) -> None:
    model = made(row)
    found = {place.name: place for place in places(model)}
    assert list(found) == [name for name, _ in model.named_parameters()]
    for name, place in found.items():
        last = name.split(".")[-1]
        assert (place.role == "bias") == (last == "bias" or "relative_bias" in name), name
        assert (place.role == "gain") == ("norm" in name and last == "weight"), name
        if place.role == "matrix":
            assert torch.Size(place.matrices).numel() == place.parameter.numel(), name
            assert place.parameter.dim() > 1, name
        inside = "blocks." in name and last in ("weight", "gate", "up", "down")
        if inside and not any(part in name for part in ("norm", "router")):
            assert place.role == "matrix", name


def test_roles_by_kind_of_model() -> None:
    def count(row: str) -> Counter[str]:
        return Counter(place.role for place in places(made(row)))

    assert count("llama") == {"table": 1, "matrix": 3 * 7, "gain": 3 * 2 + 1, "head": 1}
    mixtral = count("mixtral")  # three layers of four matrices of attention, and gate, up, down of all experts at once
    assert (mixtral["matrix"], mixtral["router"]) == (3 * 7, 3)
    t5 = count("t5")  # two encoder layers of 4 + 2 matrices, three decoder layers of 8 + 2
    assert (t5["matrix"], t5["table"], t5["bias"]) == (2 * 6 + 3 * 10, 1, 2)
    bert = count("bert, both heads")  # tables of tokens, places and types; the two outputs of next sentence
    assert (bert["table"], bert["head"]) == (3, 1)
    latent = {p.name: p.role for p in places(made("deepseek_v3"))}
    assert {role for name, role in latent.items() if "key_value" in name or "query_down" in name} == {"matrix", "gain"}


def test_experts_are_many_matrices() -> None:
    model = made("mixtral")
    shapes = {p.name.split(".")[-1]: p.matrices for p in places(model) if "experts" in p.name}
    assert shapes == {"gate": (5, 80, 48), "up": (5, 80, 48), "down": (5, 48, 80)}


def test_an_unknown_module_is_refused() -> None:
    class Unknown(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.strange = nn.Parameter(torch.zeros(2, 2))

    with pytest.raises(TypeError, match=r"Unknown\.strange"):
        places(Unknown())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("row", SOME)
def test_every_kind_of_model_learns_with_every_optimizer(row: str, kind: Any) -> None:
    """Also the encoder without its head's gradient, experts that nobody chose, and biases and gains that are zero."""
    model = copy.deepcopy(made(row))
    tokens = torch.randint(3, 96, (2, 16), generator=torch.Generator().manual_seed(1))
    optimizer = make_optimizer(model, OptimizerConfig(kind=kind))
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    losses = []
    for number in range(1, 9):
        made_logits = (
            model(tokens, model.shifted(tokens)) if isinstance(model, models.EncoderDecoder) else model(tokens)
        )
        if made_logits.shape[-1] == 1:
            loss = nn.functional.binary_cross_entropy_with_logits(made_logits[..., 0], (tokens > 40).float())
        else:
            loss = nn.functional.cross_entropy(made_logits.flatten(0, 1), tokens.flatten())
        loss.backward()
        if number == 1:
            reached = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
        optimizer.step(number, 0.5)
        model.zero_grad(set_to_none=True)
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert reached <= {name for name, p in model.named_parameters() if not torch.equal(p, start[name])}
    assert all(torch.isfinite(p).all() for p in model.parameters())
