"""Training's kernels in C against torch in fp64, and every instruction set against plain C, bit by bit."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from athanor.engine.native import library
from athanor.engine.native.compiling import compilers
from athanor.models.build import build
from athanor.models.config import ModelConfig, NormConfig, standard_config
from athanor.models.norm import RMSNorm
from athanor.models.precision import autocast
from athanor.models.rope import rotate
from athanor.models.where import Where
from athanor.training import kernel_layers
from athanor.training import kernels as training_kernels
from athanor.training.batches import Batch
from athanor.training.kernel_layers import use_kernels
from athanor.training.kernels import Kernels
from athanor.training.objectives import cross_entropy, next_token

pytestmark = pytest.mark.skipif(
    not compilers() or training_kernels.training_kernels() is None, reason="needs a C compiler, AVX2 and GNU's OpenMP"
)

TYPES = (torch.float32, torch.bfloat16)
NEAR = {torch.float32: 3e-6, torch.bfloat16: 2e-2}  # of the largest number


def made(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def on_all_levels(run: Any) -> list[Tensor]:
    """What `run` gives with the fastest instruction set, once all have given the same bits."""
    found = library.library()
    every = [run(Kernels(found, level)) for level in range(found.athanor_best() + 1)]
    for other in every[1:]:
        assert all(torch.equal(one, two) for one, two in zip(every[0], other, strict=True))
    return list(every[-1])


def near(found: Sequence[Tensor], wanted: Sequence[Tensor], dtype: torch.dtype) -> None:
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == dtype
        assert float((one.double() - other).abs().max()) <= NEAR[dtype] * max(1.0, float(other.abs().max()))


def attended(
    time: int, heads: int, kv_heads: int, head_dim: int, document: int, dtype: torch.dtype
) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor, tuple[Tensor, Tensor]]:
    """Queries, keys and values of two rows, a gradient, and spans: of causal documents, and of a window both ways."""
    queries, keys, values = (
        made(2, time, count, head_dim, dtype=dtype, seed=seed) for seed, count in enumerate((heads, kv_heads, kv_heads))
    )
    places = torch.arange(time)
    first = torch.stack([places // document * document, (places - 5).clamp(min=0)]).to(torch.int32)
    last = torch.stack([places, (places + 3).clamp(max=time - 1)]).to(torch.int32)
    return (queries, keys, values), made(2, time, heads, head_dim, dtype=dtype, seed=3), (first, last)


def exactly_attended(
    given: Sequence[Tensor], gradient: Tensor, spans: tuple[Tensor, Tensor], scale: float
) -> list[Tensor]:
    """(2, heads, time, head_dim) and the gradients of what is given, in fp64."""
    exact, places = [one.double().transpose(1, 2).requires_grad_() for one in given], torch.arange(gradient.shape[1])
    mask = (places >= spans[0][:, :, None]) & (places <= spans[1][:, :, None])
    wanted = F.scaled_dot_product_attention(*exact, attn_mask=mask[:, None], scale=scale, enable_gqa=True)
    return [wanted.detach(), *torch.autograd.grad(wanted, exact, gradient.double().transpose(1, 2))]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(
    ("time", "heads", "kv_heads", "head_dim", "document"),
    [
        (1, 2, 2, 16, 9),
        (7, 2, 1, 32, 3),
        (37, 4, 2, 16, 10),
        (50, 3, 3, 80, 20),
        (96, 4, 1, 64, 1000),
        (130, 2, 2, 128, 50),
    ],
)
def test_attention(dtype: torch.dtype, time: int, heads: int, kv_heads: int, head_dim: int, document: int) -> None:
    given, gradient, spans = attended(time, heads, kv_heads, head_dim, document, dtype)
    scale = head_dim**-0.5

    def run(kernels: Kernels) -> list[Tensor]:
        out, logsumexp = kernels.attend(*given, spans, scale)
        return [out, *kernels.attend_back(gradient, (*given, *spans, out, logsumexp), scale)]

    found = [one.transpose(1, 2) for one in on_all_levels(run)]
    near(found, exactly_attended(given, gradient, spans, scale), dtype)


@pytest.mark.parametrize("time", [1, 32, 70, 130])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim", "document"), [(2, 1, 32, 9), (3, 3, 64, 40), (4, 2, 96, 33), (2, 2, 128, 1000)]
)
def test_attention_in_tiles(time: int, heads: int, kv_heads: int, head_dim: int, document: int) -> None:
    if not (found := library.library()).athanor_tiles():
        pytest.skip("needs a processor with AMX")
    given, gradient, spans = attended(time, heads, kv_heads, head_dim, document, torch.bfloat16)
    kernels = Kernels(found, found.athanor_best(), tiles=True)
    product = gradient.flatten() @ gradient.flatten()
    out, logsumexp = kernels.attend(*given, spans, 0.1)
    back = kernels.attend_back(gradient, (*given, *spans, out, logsumexp), 0.1)
    near([one.transpose(1, 2) for one in (out, *back)], exactly_attended(given, gradient, spans, 0.1), torch.bfloat16)
    _, plain = Kernels(found, 0).attend(*given, spans, 0.1)
    assert torch.allclose(logsumexp, plain, atol=1e-5)
    again = kernels.attend_back(gradient, (*given, *spans, out, logsumexp), 0.1)
    assert all(torch.equal(one, other) for one, other in zip(back, again, strict=True))
    assert torch.equal(product, gradient.flatten() @ gradient.flatten())  # torch's own use of tiles is undisturbed


@pytest.mark.parametrize(("dtype", "dtype_out"), [(TYPES[0], TYPES[0]), (TYPES[0], TYPES[1]), (TYPES[1], TYPES[1])])
@pytest.mark.parametrize(("rows", "size"), [(1, 16), (63, 48), (200, 128)])
def test_norm(dtype: torch.dtype, dtype_out: torch.dtype, rows: int, size: int) -> None:
    x, gain, gradient = made(rows, size, dtype=dtype), made(size, seed=1), made(rows, size, dtype=dtype_out, seed=2)

    past = made(rows, size, dtype=dtype, seed=3)

    def run(kernels: Kernels) -> list[Tensor]:
        out, scale = kernels.norm(x, gain, 1e-5, dtype_out)
        back, added = (kernels.norm_back(gradient, x, gain, scale, one) for one in (None, past))
        return [out, *back, *added]

    out, x_gradient, gain_gradient, added, same = on_all_levels(run)
    assert torch.equal(gain_gradient, same)
    exact, weight = x.double().requires_grad_(), gain.double().requires_grad_()
    wanted = F.rms_norm(exact, (size,), weight, 1e-5)
    of_x, of_gain = torch.autograd.grad(wanted, (exact, weight), gradient.double())
    near([out], [wanted.detach()], dtype_out)
    near([x_gradient, added], [of_x, of_x + past.double()], dtype)
    near([gain_gradient], [of_gain], torch.float32)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("size", [16, 16384, 16400, 40000])
def test_gate(dtype: torch.dtype, size: int) -> None:
    gate, up, gradient = (made(size // 16, 16, dtype=dtype, seed=seed) for seed in range(3))
    gate *= 20

    def run(kernels: Kernels) -> list[Tensor]:
        *gradients, again = kernels.gate_back(gradient, gate, up, again=True)
        assert again is not None
        return [kernels.gate(gate, up), *gradients, again]

    *found, again = on_all_levels(run)
    assert torch.equal(again, found[0])
    exact = gate.double().requires_grad_(), up.double().requires_grad_()
    wanted = F.silu(exact[0]) * exact[1]
    near(found, [wanted.detach(), *torch.autograd.grad(wanted, exact, gradient.double())], dtype)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("head_dim", "half"), [(32, 16), (64, 32), (80, 16)])
def test_turn(dtype: torch.dtype, head_dim: int, half: int) -> None:
    x, angles = made(2, 67, 3, head_dim, dtype=dtype), made(2, 67, 1, half, seed=1)
    turned, back = on_all_levels(
        lambda kernels: [kernels.turn(x, angles.cos(), angles.sin(), back=back) for back in (False, True)]
    )
    wanted = [rotate(x.double(), angles.double().cos(), sign * angles.double().sin()) for sign in (1, -1)]
    near([turned, back], wanted, dtype)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("size", [16, 16384, 40000])
def test_add(dtype: torch.dtype, size: int) -> None:
    x, part = made(size), made(size, dtype=dtype, seed=1)
    assert torch.equal(on_all_levels(lambda kernels: [kernels.add(x, part)])[0], x + part)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 200), st.integers(1, 100))
def test_transpose(rows: int, columns: int) -> None:
    x, total = made(rows, columns, dtype=torch.bfloat16), made(columns, rows, seed=1)

    def run(kernels: Kernels) -> list[Tensor]:
        found = kernels.transpose(x)
        return [found, found @ x, kernels.transpose(x, added_to=total.clone())]

    found, product, added = on_all_levels(run)
    assert torch.equal(found, x.T)
    assert product.isfinite().all()  # whatever stands behind the rows
    assert torch.equal(added, total + x.T)


@pytest.mark.parametrize("size", [16, 16384, 16400, 40000])
def test_blend_and_squares(size: int) -> None:
    gradient, momentum = made(size), made(size, seed=1)

    def run(kernels: Kernels) -> list[Tensor]:
        kept, update = momentum.clone(), torch.empty(size)
        kernels.blend(gradient, kept, update, 0.9)
        return [kept, update, kernels.squares(gradient)]

    *found, squares = on_all_levels(run)
    kept = momentum.double().lerp(gradient.double(), 0.1)
    near(found, [kept, gradient.double().lerp(kept, 0.9)], torch.float32)
    assert float(squares) == pytest.approx(float(gradient.double().square().sum()), rel=1e-6)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("cautious", [False, True])
@pytest.mark.parametrize(("rows", "size"), [(1, 16), (63, 48), (200, 128)])
def test_move(dtype: torch.dtype, cautious: bool, rows: int, size: int) -> None:
    weight, directions, scales = made(rows, size), made(rows, size, dtype=dtype, seed=1), made(rows, 1, seed=2).abs()

    def run(kernels: Kernels) -> list[Tensor]:
        moved = weight.clone()
        kernels.move(moved, directions, scales, 0.1, 0.3, cautious)
        return [moved]

    found = on_all_levels(run)
    step = directions.double() * scales
    decayed = weight.double() * (step * weight > 0 if cautious else 1)
    near(found, [weight.double() - 0.1 * (step + 0.3 * decayed)], torch.float32)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize(("rows", "size"), [(1, 16), (9, 1040), (33, 512)])
def test_differentiate(dtype: torch.dtype, width: int, rows: int, size: int) -> None:
    logits = made(rows, size, dtype=dtype) * 5
    labels = torch.randint(size, (rows, width), generator=torch.Generator().manual_seed(1))
    labels[:, -1] = labels[:, 0]  # a label may stand there twice
    shares = made(rows, width, seed=2).softmax(-1) if width > 1 else None

    def run(kernels: Kernels) -> list[Tensor]:
        gradient = logits.clone()
        return [kernels.differentiate(gradient, labels, shares), gradient]

    losses, gradient = on_all_levels(run)
    exact = logits.double().requires_grad_()
    parts = torch.ones(rows, 1).double() if shares is None else shares.double()
    wanted = -(exact.log_softmax(-1).gather(1, labels) * parts).sum(1)
    near([losses], [wanted.detach()], torch.float32)
    near([gradient], list(torch.autograd.grad(wanted.sum(), exact)), dtype)


def test_labels_that_do_not_exist_are_refused() -> None:
    kernels = training_kernels.training_kernels()
    assert kernels is not None
    for label in (-1, 16):
        with pytest.raises(IndexError):
            kernels.differentiate(torch.zeros(1, 16), torch.tensor([[label]]), None)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), time=st.integers(1, 40), window=st.none() | st.integers(1, 12), causal=st.booleans())
def test_spans_are_those_of_the_mask(data: st.DataObject, time: int, window: int | None, causal: bool) -> None:
    ids = torch.tensor([data.draw(st.lists(st.integers(-1, 3), min_size=time, max_size=time)) for _ in range(2)])
    if data.draw(st.booleans()):  # as packed rows are: in order, padding behind them
        ids = torch.where(ids < 0, 9, ids).sort(dim=1).values
        ids = torch.where(ids == 9, -1, ids)
    where = Where(torch.arange(time).expand(2, time), causal=causal, document_ids=ids)
    spans = where.spans(window)
    mask, places = where.mask(window), torch.arange(time)
    assert mask is not None
    mask = mask.expand(2, 1, time, time)[:, 0]
    if spans is None:
        held = torch.where(ids < 0, 9, ids)
        assert (held.diff(dim=1) < 0).any()
    else:
        first, last = spans
        assert torch.equal(mask, (places >= first[:, :, None]) & (places <= last[:, :, None]))


LLAMA = standard_config(64, 48, d_model=64, n_layers=2)
WINDOWED = replace(
    LLAMA, layers=tuple(replace(one, attention=replace(one.attention, window=9)) for one in LLAMA.layers)  # type: ignore[arg-type]
)  # fmt: skip
CAPPED = replace(
    LLAMA, layers=tuple(replace(one, attention=replace(one.attention, soft_cap=20.0)) for one in LLAMA.layers)  # type: ignore[arg-type]
)  # fmt: skip
SANDWICH = replace(
    LLAMA, layers=tuple(replace(one, norm=NormConfig(1e-6, offset=1.0), placement="sandwich") for one in LLAMA.layers)
)  # fmt: skip


def gradients(model: Any, batch: Batch, precision: Any) -> list[Tensor]:
    with autocast(precision):
        loss = next_token(model, batch)
    (loss.sum / batch.n_targets).backward()
    return [loss.sum.detach(), *(parameter.grad for parameter in model.parameters())]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("config", [LLAMA, WINDOWED, CAPPED, SANDWICH], ids=["plain", "windows", "capped", "sandwich"])
def test_a_model_has_the_gradients_that_it_has_without(
    config: ModelConfig, precision: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = torch.randint(64, (3, 48), generator=torch.Generator().manual_seed(0))
    ids = torch.arange(48).expand(3, 48) // 20
    ids = torch.where(torch.arange(48) < 44, ids, -1)
    batch = Batch(tokens, torch.where(ids < 0, -100, tokens.roll(-1, 1)), ids, torch.arange(48).expand(3, 48) % 20)
    model = build(config, 0)
    with torch.no_grad():  # or what begins as zero would have no gradient
        for number, parameter in enumerate(model.parameters()):
            parameter.add_(made(*parameter.shape, seed=number), alpha=0.1)
    plain, exact, fast = copy.deepcopy(model), copy.deepcopy(model), copy.deepcopy(model)
    use_kernels(fast)
    found = gradients(fast, batch, precision)
    monkeypatch.setattr(cross_entropy, "training_kernels", lambda: None)
    wanted, slow = gradients(exact, batch, "fp32"), gradients(plain, batch, precision)
    for one, other, right in zip(found, slow, wanted, strict=True):
        far = float((one - right).norm() / right.norm())
        assert far <= 2e-6 if precision == "fp32" else far <= 1.5 * float((other - right).norm() / right.norm()) + 1e-3
    again = copy.deepcopy(fast)
    again.zero_grad()
    assert again.blocks[0].mlp.close.args[0] is again.blocks[0].mlp  # a copy goes through its own layers


def test_threads_change_no_bit() -> None:
    queries, keys, values = (made(3, 50, 4, 32, seed=seed) for seed in range(3))
    spans, x = (torch.zeros(3, 50, dtype=torch.int32), torch.full((3, 50), 49, dtype=torch.int32)), made(40_000, 64)
    kernels = training_kernels.training_kernels()
    assert kernels is not None
    found, before = [], torch.get_num_threads()
    labels, heads, angle = torch.arange(300)[:, None] % 64, made(2, 30, 4, 32), made(2, 30, 1, 16)
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        out, logsumexp = kernels.attend(queries, keys, values, spans, 0.2)
        back = kernels.attend_back(values, (queries, keys, values, *spans, out, logsumexp), 0.2)
        normed, scale = kernels.norm(x, made(64), 1e-6, torch.float32)
        logits = made(300, 64)
        losses = kernels.differentiate(logits, labels, None)
        gates = kernels.gate(x, x), *kernels.gate_back(x, x, x, again=False)[:2], kernels.turn(heads, angle, angle)
        found.append([out, *back, normed, *kernels.norm_back(x, x, made(64), scale), logits, losses, *gates])
    torch.set_num_threads(before)
    assert all(torch.equal(one, other) for others in found[1:] for one, other in zip(found[0], others, strict=True))


def test_without_gradients_a_layer_is_what_it_was() -> None:
    model, tokens = build(LLAMA, 0), torch.arange(30)[None]
    with torch.no_grad():
        before = model(tokens)
        use_kernels(model)
        assert torch.equal(before, model(tokens))


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
def test_what_is_no_number_stays_none(wrong: float) -> None:
    model = build(LLAMA, 0)
    use_kernels(model)
    with torch.no_grad():
        model.blocks[0].attention.query.weight[3, 3] = wrong
    tokens = torch.randint(64, (2, 48), generator=torch.Generator().manual_seed(0))
    places = torch.arange(48).expand(2, 48)
    assert not next_token(model, Batch(tokens, tokens.roll(-1, 1), places // 30, places)).sum.isfinite()


def test_positions_of_one_row_stand_for_all() -> None:
    model, tokens = build(LLAMA, 0), torch.randint(64, (3, 48), generator=torch.Generator().manual_seed(0))
    expected = model.hidden(tokens, positions=torch.arange(48).expand(3, 48))
    use_kernels(model)
    torch.testing.assert_close(model.hidden(tokens, positions=torch.arange(48)[None]), expected)


@pytest.mark.parametrize("place", [0, 37])
def test_one_logit_that_is_no_number_is_not_hidden_by_the_others(place: int) -> None:
    kernels = training_kernels.training_kernels()
    assert kernels is not None
    logits = made(2, 64)
    logits[1, place] = torch.nan
    losses = kernels.differentiate(logits, torch.tensor([[5], [5]]), None)
    assert losses.isfinite().tolist() == [True, False]
    assert logits[1].isnan().all()


@pytest.mark.parametrize(
    ("labels", "shares"),
    [
        (torch.zeros(4, 1, dtype=torch.int32), None),
        (torch.zeros(3, 1, dtype=torch.int64), None),
        (torch.zeros(4, 2, dtype=torch.int64), torch.ones(4, 1)),
    ],
)
def test_labels_that_are_none_are_refused(labels: torch.Tensor, shares: torch.Tensor | None) -> None:
    kernels = training_kernels.training_kernels()
    assert kernels is not None
    with pytest.raises(ValueError, match="for"):
        kernels.differentiate(made(4, 64), labels, shares)


def test_where_there_are_none_all_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_layers, "training_kernels", lambda: None)
    model = build(LLAMA, 0)
    use_kernels(model)
    assert type(model.blocks[0].mlp_norms.input).forward is RMSNorm.forward
    assert "forward" not in vars(model.blocks[0].mlp_norms.input)
