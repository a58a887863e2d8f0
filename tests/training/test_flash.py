"""Attention document by document on a GPU: what it is given, and that it is what masks give."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import varlen

from athanor.models.build import new
from athanor.models.config import standard_config
from athanor.models.where import Where
from athanor.training import flash
from athanor.training.flash import use_flash
from tests.training.texts import encoder_config

DOCUMENTS = torch.tensor([[0, 0, 1, 1, 1, 1, 1, -1, -1, -1], [0, 1, 2, 2, 2, 2, 2, 2, 2, 2]])
GPU = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU"))


def plainly(
    queries: Tensor, keys: Tensor, values: Tensor, edges: Tensor, other_edges: Tensor, longest: int, other: int,
    *, scale: float, window_size: tuple[int, int], enable_gqa: bool,
) -> Tensor:  # fmt: skip
    """What `varlen_attn` documents, one sequence after the other: (tokens, heads, head_dim)."""
    assert torch.equal(edges, other_edges)
    assert edges.dtype == torch.int32
    assert longest == other == int(edges.diff().max())
    parts = []
    for start, end in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        far = torch.arange(end - start)[:, None] - torch.arange(end - start)
        back, ahead = (reach if reach >= 0 else end - start for reach in window_size)
        one = (x[start:end].transpose(0, 1)[None] for x in (queries, keys, values))
        mask = (far <= back) & (-far <= ahead)
        parts.append(F.scaled_dot_product_attention(*one, attn_mask=mask, scale=scale, enable_gqa=enable_gqa)[0])
    return torch.cat([part.transpose(0, 1) for part in parts])


def network(causal: bool, window: int | None) -> Any:
    """Its weights are all random: some begin as zeros, and nothing would come through."""
    config = standard_config(64, 32, d_model=128, n_layers=2) if causal else encoder_config()
    layers = tuple(replace(layer, attention=replace(layer.attention, window=window)) for layer in config.layers)
    model: Any = new(replace(config, layers=layers))
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draws) * 0.1 + (parameter.dim() == 1))
    return model


@pytest.mark.parametrize("device", ["cpu", GPU])
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("causal", [True, False])
def test_it_is_what_masks_give(causal: bool, window: int | None, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    used = []

    def counted(*given: Any, **more: Any) -> Tensor:
        used.append(1)
        return plainly(*given, **more)

    if device == "cpu":
        monkeypatch.setattr(varlen, "varlen_attn", counted)
        monkeypatch.setattr(flash, "_has_kernel", lambda device: True)
    model = network(causal, window).to(device)
    tokens = torch.arange(DOCUMENTS.numel()).view(DOCUMENTS.shape).to(device)
    given = {"positions": tokens % 10, "document_ids": DOCUMENTS.to(device)}
    gradients = []
    for prepared in (False, True):
        if prepared:
            use_flash(model)
        model.zero_grad()
        with torch.autocast(device, torch.bfloat16):
            states = model.hidden(tokens, **given) if causal else model.encode(tokens, **given)
        states[DOCUMENTS.to(device) >= 0].float().square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert len(used) == (2 if device == "cpu" else 0)
    for got, wanted in zip(*gradients, strict=True):
        assert float((got - wanted).norm()) < 0.03 * float(wanted.norm())


def test_measuring_and_fp32_stay_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flash, "_has_kernel", lambda device: True)
    monkeypatch.setattr(varlen, "varlen_attn", None)
    model = network(True, None)
    expected, fast = model(DOCUMENTS.abs()), copy.deepcopy(model)
    use_flash(fast)
    assert torch.equal(fast(DOCUMENTS.abs()), expected)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        fast(DOCUMENTS.abs())


def test_bounds_are_those_of_the_documents() -> None:
    documents = torch.tensor([[0, 0, 1, 1, 1, -1], [0, 1, 2, 2, 2, 2]])
    where = Where(torch.zeros_like(documents), causal=True, document_ids=documents)
    edges, longest = where.bounds() or (torch.empty(0), 0)
    assert edges.tolist() == [0, 2, 5, 6, 7, 8, 12]
    assert longest == 4
    mixed = Where(torch.zeros_like(documents), causal=True, document_ids=documents.flip(1))
    assert mixed.bounds() is None
