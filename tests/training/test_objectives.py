"""The head's cross-entropy in chunks against torch's own, and the loss of packed rows against the sum over unpacked
ones.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import athanor.training.objectives.cross_entropy as objectives
from athanor.models.decoder import Decoder
from athanor.training.batches import IGNORED, Batch, PackedBatches
from athanor.training.objectives import linear_cross_entropy, next_token


def case(n: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(n)
    hidden = (scale * torch.randn(n, 12, generator=random)).to(dtype).requires_grad_()
    weight = torch.randn(50, 12, generator=random).requires_grad_()
    return hidden, weight, torch.randint(50, (n,), generator=random)


def value_and_gradients(
    loss: Callable[[Tensor, Tensor, Tensor], Tensor], hidden: Tensor, weight: Tensor, targets: Tensor
) -> list[Tensor]:
    value = loss(hidden, weight, targets)
    (0.3 * value).backward()
    assert hidden.grad is not None
    assert weight.grad is not None
    return [value.detach(), hidden.grad, weight.grad]


def plain(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(hidden.float() @ weight.T, targets, reduction="sum")


@pytest.mark.parametrize("n", [1, 6, 7, 8, 14, 20])
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_value_and_gradients_equal_torchs_at_every_chunk_boundary(
    n: int, scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objectives, "_CHUNK", 7)
    ours, theirs = (value_and_gradients(f, *case(n, scale=scale)) for f in (linear_cross_entropy, plain))
    for got, wanted in zip(ours, theirs, strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-4 * scale, rtol=1e-5)


@pytest.mark.parametrize("grad", [True, False])
def test_under_autocast_every_product_is_in_its_type(grad: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objectives, "_CHUNK", 7)
    hidden, weight, targets = case(20)
    with torch.autocast("cpu", torch.bfloat16), torch.set_grad_enabled(grad):
        value = linear_cross_entropy(hidden, weight, targets)
    wanted = value_and_gradients(plain, *case(20))
    assert value.item() == pytest.approx(wanted[0].item(), rel=0.01)
    if grad:
        value.backward()
        same = linear_cross_entropy(hidden.to(torch.bfloat16), weight.to(torch.bfloat16), targets)
        assert value.item() == same.item()
        for got, right in zip((hidden.grad, weight.grad), wanted[1:], strict=True):
            assert got is not None
            assert got.dtype == torch.float32
            assert F.cosine_similarity(got.flatten(), right.flatten(), dim=0) > 0.999


def test_bf16_is_close_and_gives_an_fp32_weight_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objectives, "_CHUNK", 7)
    ours, theirs = (value_and_gradients(f, *case(40, torch.bfloat16)) for f in (linear_cross_entropy, plain))
    assert ours[2].dtype == torch.float32
    assert ours[0].item() == pytest.approx(theirs[0].item(), rel=0.01)
    for got, wanted in zip(ours[1:], theirs[1:], strict=True):
        assert F.cosine_similarity(got.float().flatten(), wanted.float().flatten(), dim=0) > 0.999


def test_under_autocast_it_is_close(monkeypatch: pytest.MonkeyPatch) -> None:
    def autocast_loss(*inputs: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return linear_cross_entropy(*inputs)

    ours, theirs = value_and_gradients(autocast_loss, *case(40)), value_and_gradients(plain, *case(40))
    assert ours[0].item() == pytest.approx(theirs[0].item(), rel=0.01)
    for got, wanted in zip(ours[1:], theirs[1:], strict=True):
        assert F.cosine_similarity(got.flatten(), wanted.flatten(), dim=0) > 0.999


def test_no_gradient_is_needed_to_get_the_value() -> None:
    hidden, weight, targets = case(5)
    with torch.no_grad():
        assert linear_cross_entropy(hidden, weight, targets).item() == pytest.approx(
            plain(hidden, weight, targets).item()
        )


def unpacked(batch: Batch) -> list[Batch]:
    parts = []
    for row in range(len(batch.tokens)):
        for document in batch.document_ids[row].unique().tolist():
            where = batch.document_ids[row] == document
            if document >= 0:
                parts.append(Batch(**{name: column[row][where][None] for name, column in batch.columns.items()}))
    return parts


@pytest.mark.parametrize("masked", [False, True])
def test_a_packed_loss_and_its_gradients_are_the_sum_over_documents(
    masked: bool, make_model: Callable[[int], Decoder], make_batches: Callable[[], PackedBatches]
) -> None:
    batch = make_batches().next()
    if masked:
        batch.targets[batch.positions < 3] = IGNORED
    sums, gradients = [], []
    for parts in ([batch], unpacked(batch)):
        model = make_model(2)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith(("output.weight", "down.weight")):
                    parameter.normal_(0, 0.3, generator=torch.Generator().manual_seed(1))
        losses = [next_token(model, part) for part in parts if part.n_targets]
        assert sum(loss.count for loss in losses) == batch.n_targets
        total = torch.stack([loss.sum for loss in losses]).sum()
        total.backward()
        sums.append(total.item())
        gradients.append([p.grad for p in model.parameters()])
    assert sums[0] == pytest.approx(sums[1], rel=1e-5)
    for got, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(got, wanted, atol=2e-4, rtol=1e-4)
