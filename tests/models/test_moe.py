"""Experts: the grouped product against one matrix at a time, forwards and backwards."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from athanor.models.config import MlpConfig, MoeConfig
from athanor.models.moe import Router, by_expert


@pytest.mark.parametrize("width", [16, 18])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("counts", [[3, 0, 5, 1], [0, 0, 9, 0], [9, 0, 0, 0]])
def test_each_row_meets_its_expert(width: int, dtype: torch.dtype, counts: list[int]) -> None:
    """width: of a multiple of 16 bytes, which torch groups, and of another."""
    torch.manual_seed(0)
    x = torch.randn(9, width, dtype=dtype, requires_grad=True)
    weights = torch.randn(4, 8, width, dtype=dtype, requires_grad=True)
    found = by_expert(x, weights, torch.tensor(counts))
    expert = torch.arange(4).repeat_interleave(torch.tensor(counts))
    wanted = torch.stack([F.linear(row, weights[e]) for row, e in zip(x, expert, strict=True)])
    close = {"rtol": 0.03, "atol": 0.3} if dtype == torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-4}
    torch.testing.assert_close(found, wanted, **close)
    gradients = torch.autograd.grad(found.square().sum(), (x, weights))
    for one, other in zip(gradients, torch.autograd.grad(wanted.square().sum(), (x, weights)), strict=True):
        torch.testing.assert_close(one, other, **close)


def test_autocast_reaches_the_experts() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert by_expert(torch.randn(4, 16), torch.randn(2, 16, 16), torch.tensor([2, 2])).dtype == torch.bfloat16


def test_autocast_leaves_the_choice_of_experts_in_fp32() -> None:
    torch.manual_seed(0)
    router, x = Router(16, MoeConfig(8, 2, MlpConfig(4))), torch.randn(50, 16)
    torch.nn.init.normal_(router.weight)
    chosen, weights = router(x)
    with torch.autocast("cpu", torch.bfloat16):
        again, their_weights = router(x)
    assert torch.equal(chosen, again)
    assert torch.equal(weights, their_weights)
