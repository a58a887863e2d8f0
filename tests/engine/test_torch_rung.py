"""The first rung: the logits of the whole forward pass, with the same bits however the work is cut, shared and laid
out.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from athanor.base.errors import ModelError
from athanor.engine.paged_attention import attended
from athanor.engine.rung import Cache, Segment
from athanor.engine.torch_rung import TorchRung
from athanor.models.build import build
from athanor.models.config import (
    AttentionConfig,
    EmbeddingConfig,
    HeadConfig,
    LatentAttentionConfig,
    LayerConfig,
    MlpConfig,
    ModelConfig,
    MoeConfig,
    NormConfig,
)
from athanor.models.decoder import Decoder
from athanor.models.ngrams import LONGEST, NGrams
from athanor.models.position_config import Alibi, RelativeBias, RopeConfig, RopeScaling
from athanor.models.precision import autocast

PLAIN = AttentionConfig(4, 2, 8, qk_norm="head")
LAYERS: dict[str, LayerConfig] = {
    "grouped": LayerConfig(PLAIN, MlpConfig(48)),
    "one head": LayerConfig(AttentionConfig(1, 1, 16), MlpConfig(40, gated=False, activation="gelu")),
    "window": LayerConfig(AttentionConfig(4, 2, 8, window=11), MlpConfig(48)),
    "soft cap": LayerConfig(AttentionConfig(4, 2, 8, soft_cap=5.0), MlpConfig(48, activation="gelu_tanh")),
    "ALiBi": LayerConfig(AttentionConfig(4, 4, 8, Alibi()), MlpConfig(48)),
    "scaled ALiBi": LayerConfig(AttentionConfig(4, 4, 8, Alibi(scaled=True)), MlpConfig(48)),
    "relative": LayerConfig(AttentionConfig(4, 4, 8, RelativeBias(32, 128)), MlpConfig(48)),
    "latent": LayerConfig(LatentAttentionConfig(4, 16, 8, 4, 6), MlpConfig(48)),
    "experts": LayerConfig(PLAIN, MoeConfig(8, 2, MlpConfig(24), shared=MlpConfig(24))),
    "dynamic": LayerConfig(
        AttentionConfig(4, 2, 8, RopeConfig(scaling=RopeScaling("dynamic", 2.0, original_length=300))), MlpConfig(48)
    ),
    "parallel": LayerConfig(PLAIN, MlpConfig(48), norm=NormConfig(1e-5, "layer", True), placement="parallel"),
}
NAMES = [*LAYERS, "memory"]
TOKENS = np.random.default_rng(0).integers(0, 384, (8, 300)).astype(np.int32)


def made(layer: LayerConfig, **changes: Any) -> Decoder:
    config = ModelConfig(384, 32, 300, (layer, layer), head=HeadConfig(tied=False))
    model = build(dataclasses.replace(config, **changes), seed=2)
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            parameter += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
    return model.eval()


def named(name: str) -> Decoder:
    if name in LAYERS:
        return made(LAYERS[name])
    model = made(LAYERS["grouped"], embedding=EmbeddingConfig(ngrams=3), head=HeadConfig())
    assert model.embedding.memory is not None
    model.embedding.memory.table = NGrams.count(TOKENS[:3].ravel(), 384, 3)
    return model


def rung_of(model: Decoder, precision: str = "fp32", cache: Cache = "auto") -> TorchRung:
    rung = TorchRung(model, precision, cache)
    rung.allocate(240)
    return rung


def places(number: int, seed: int = 0) -> np.ndarray:
    """Blocks for sequence `number`: 20 of its own, scattered."""
    return np.random.default_rng(seed).permutation(240)[20 * number : 20 * number + 20].astype(np.int32)


def segment(number: int, start: int, n: int, seed: int, wanted: int) -> Segment:
    blocks = places(number, seed)[: -(-(start + n) // 16)]
    before = TOKENS[number, max(0, start - LONGEST) : start]
    return Segment(TOKENS[number, start : start + n], start, blocks, wanted, before)


def whole(rung: TorchRung, number: int, n: int) -> np.ndarray:
    return rung.forward([segment(number, 0, n, 0, n)]).copy()


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_those_of_the_whole_forward_pass(name: str) -> None:
    model = named(name)
    with torch.no_grad():
        expected = model(torch.from_numpy(TOKENS[:1].astype(np.int64)))[0].numpy()
    np.testing.assert_allclose(whole(rung_of(model), 0, 300), expected, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("name", LAYERS)
def test_keys_and_values_of_eight_bits_change_little(name: str) -> None:
    model = made(LAYERS[name])
    usual, small = rung_of(model, "bf16"), rung_of(model, "bf16", "int8")
    exact = whole(rung_of(model), 0, 100)
    attention = LAYERS[name].attention
    scale = attention.scale if isinstance(attention, AttentionConfig) else None
    most = 0.04 * (scale or attention.key_dim**-0.5) * attention.key_dim**0.5  # scores that are larger err by more
    error = np.linalg.norm(whole(rung_of(model, "fp32", "int8"), 0, 100) - exact) / np.linalg.norm(exact)
    assert 0 < error < most
    assert 0.5 < small.bytes_per_block / usual.bytes_per_block < 0.8


@pytest.mark.parametrize(
    ("precision", "cache"),
    [("fp32", "auto"), ("bf16", "auto"), ("fp32", "int8"), ("int8", "auto"), ("int4", "auto")],
)
@pytest.mark.parametrize("name", NAMES)
def test_bits_do_not_depend_on_cuts_company_or_blocks(name: str, precision: str, cache: Cache) -> None:
    rung = rung_of(named(name), precision, cache)
    alone = [whole(rung, number, 150) for number in range(6)]
    rng = np.random.default_rng(1)
    starts = [0] * 6
    seen = 0
    while any(start < 150 for start in starts):
        chosen = [i for i in range(6) if starts[i] < 150 and rng.random() < 0.7]
        cuts = [min(int(rng.choice([1, 1, 1, 2, 5, 16, 33, 70])), 150 - starts[i]) for i in chosen]
        if not chosen:
            continue
        wanted = [n if rng.random() < 0.8 else 0 for n in cuts]
        logits = rung.forward([segment(i, starts[i], n, 7, w) for i, n, w in zip(chosen, cuts, wanted, strict=True)])
        at = 0
        for i, n, w in zip(chosen, cuts, wanted, strict=True):
            assert np.array_equal(logits[at : at + w], alone[i][starts[i] + n - w : starts[i] + n])
            at, starts[i], seen = at + w, starts[i] + n, seen + w
        assert at == len(logits)
    assert seen > 400


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_precision_is_that_of_autocast(precision: str) -> None:
    model = made(LAYERS["grouped"])
    with torch.no_grad(), autocast(precision):
        expected = model(torch.from_numpy(TOKENS[:1, :100].astype(np.int64)))[0].float().log_softmax(-1).numpy()
    ours = torch.from_numpy(whole(rung_of(model, precision), 0, 100)).log_softmax(-1).numpy()
    assert np.abs(ours - expected).mean() < (1e-4 if precision == "fp32" else 5e-2)


def of_few_bits(weight: torch.Tensor, group: int, most: int) -> torch.Tensor:
    """Rounded to so many steps of the largest in each group of columns, whose sign is the lowest step's in 4 bits."""
    groups = weight.unflatten(1, (-1, group))
    extreme = groups.gather(2, groups.abs().argmax(2, keepdim=True))
    scale = (extreme / -most if most == 8 else extreme.abs() / most).bfloat16().float()
    return ((groups / scale).round().clamp(-most, 7 if most == 8 else most) * scale).flatten(1)


@pytest.mark.parametrize("form", ["int8", "int4"])
def test_matrices_of_few_bits_are_multiplied_as_they_are_rounded(form: str) -> None:
    layer = LayerConfig(AttentionConfig(4, 2, 16, bias=True), MlpConfig(96))
    model = made(layer, d_model=64, head=HeadConfig(tied=False, bias=True))
    ours = whole(rung_of(model, form), 0, 100)
    exact = whole(rung_of(model), 0, 100)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2 and "embedding" not in name:
                few = form == "int4" and "head" not in name
                parameter.copy_(of_few_bits(parameter, 32 if few else parameter.shape[1], 8 if few else 127))
    rounded = whole(rung_of(model), 0, 100)
    assert np.abs(ours - rounded).mean() < 0.03 * rounded.std()
    assert np.abs(ours - rounded).mean() < 0.5 * np.abs(exact - rounded).mean()


@pytest.mark.parametrize("cache", ["auto", "int8"])
def test_blocks_move_out_and_in_and_are_copied(cache: Cache) -> None:
    model = made(LAYERS["latent"])
    rung = rung_of(model, cache=cache)
    expected = whole(rung, 0, 40)[-1]
    rung.forward([segment(0, 0, 39, 0, 0)])
    own = places(0)[:3]
    kept = rung.read_blocks(own)
    assert kept.shape == (3, rung.bytes_per_block)
    assert kept.dtype == np.uint8
    whole(rung, 1, 300)
    moved = np.array([230, 231, 232], dtype=np.int32)
    rung.write_blocks(moved, kept)
    rung.write_blocks(own, np.zeros_like(kept))
    for wrong in (kept[:2], kept[:, 1:], kept.astype(np.float32)):
        with pytest.raises(ModelError, match="Contents of 3 blocks were to be written"):
            rung.write_blocks([10, 11, 12], wrong)
    rung.copy_block(231, 239)
    for blocks in (moved, np.array([230, 239, 232], dtype=np.int32)):
        assert np.array_equal(rung.forward([Segment(TOKENS[0, 39:40], 39, blocks, 1)])[0], expected)


@pytest.mark.parametrize("cache", ["auto", "int8"])
def test_a_sequence_that_broke_leaves_nothing_behind(cache: Cache) -> None:
    model = made(LAYERS["grouped"])
    rung, clean = rung_of(model, cache=cache), rung_of(model, cache=cache)
    with torch.no_grad():
        model.blocks[0].attention.value.weight.fill_(3e38)  # type: ignore[union-attr, operator]
    broken = rung_of(model, cache=cache)
    rung._layers = broken._layers
    assert np.isnan(whole(broken, 0, 30)).any()
    assert np.array_equal(whole(rung, 0, 20), whole(clean, 0, 20))


def test_fp32_is_that_of_the_weights_whatever_their_type() -> None:
    model = made(LAYERS["grouped"]).bfloat16()
    exact = copy.deepcopy(model).float()
    rung = TorchRung(model, "fp32")
    rung.allocate(240)
    assert whole(rung, 0, 60).tobytes() == whole(rung_of(exact), 0, 60).tobytes()
    assert next(model.parameters()).dtype == torch.bfloat16, "the caller's own stays"
    rounded = whole(rung_of(model, "auto"), 0, 60)
    assert 0 < np.abs(rounded - whole(rung, 0, 60)).max() < 0.5
    rung.update_weights(model)
    assert whole(rung, 0, 60).tobytes() == whole(rung_of(exact), 0, 60).tobytes()


def test_new_weights_are_taken_over() -> None:
    model, other = made(LAYERS["experts"]), made(LAYERS["experts"])
    rung = rung_of(model)
    before = whole(rung, 0, 20)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 1.1
    rung.update_weights(model)
    after = whole(rung, 0, 20)
    assert not np.array_equal(before, after)
    rung.update_weights(other)
    assert np.array_equal(before, whole(rung, 0, 20))


def test_a_training_run_that_watches_is_not_told() -> None:
    model, told = made(LAYERS["experts"]), []
    for block in model.blocks:
        block.mlp.router.watch = lambda *seen: told.append(seen)  # type: ignore[union-attr]
    whole(rung_of(model), 0, 20)
    assert not told
    assert all(block.mlp.router.watch for block in model.blocks)  # type: ignore[union-attr]


def test_what_depends_on_the_whole_text_is_refused() -> None:
    layer = LayerConfig(PLAIN, MoeConfig(8, 2, MlpConfig(24), capacity=5))
    with pytest.raises(ModelError, match="capacity"):
        TorchRung(made(layer))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 200_000))
def test_the_keys_of_a_place_hold_it_and_little_more(place: int) -> None:
    keys = attended(place)
    assert keys > place
    assert keys % 32 == 0
    assert keys <= max(32, place * 5 // 4 + 32)
