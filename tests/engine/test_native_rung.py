"""Whole steps in C against the plain fp32 model, and the law of rungs: the same bits whatever else is in a call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from athanor.base.errors import AthanorError, ModelError
from athanor.base.randomness import generator
from athanor.engine.native import library
from athanor.engine.native.compiling import compilers
from athanor.engine.native.library import INSTRUCTIONS
from athanor.engine.native.packing import Format
from athanor.engine.native_rung import NativeRung
from athanor.engine.rung import Cache, Segment
from athanor.engine.rungs import open_rung
from athanor.models.catalogue import MODELS
from athanor.models.config import AttentionConfig, HeadConfig, LayerConfig, MlpConfig, ModelConfig
from athanor.models.decoder import Decoder
from athanor.models.gguf.blocks import read_blocks
from athanor.models.gguf.load import load_gguf
from athanor.models.gguf.save import save_gguf
from athanor.models.position_config import RopeConfig, RopeScaling

pytestmark = pytest.mark.skipif(not compilers(), reason="there is no C compiler")

LENGTH = 45
FORMATS: tuple[Format, ...] = ("fp32", "bf16", "int8", "int4")
VARIANTS: tuple[tuple[Format, dict[str, Any]], ...] = (
    *((form, {}) for form in FORMATS),
    ("int8", {"wide": True}),
    ("int4", {"wide": True, "cache": "int8"}),
    ("fp32", {"cache": "int8"}),
)
NEAR: dict[Format, float] = {"fp32": 1e-5, "bf16": 0.02, "int8": 0.05, "int4": 0.4}
"""How far logits of random weights may lie from the fp32 model's, relative to their length."""


def config_of(attention: AttentionConfig, d_model: int = 48, d_ff: int = 80, **more: Any) -> ModelConfig:
    layer = LayerConfig(attention, MlpConfig(d_ff, bias=attention.bias))
    return ModelConfig(97, d_model, 512, more.pop("layers", (layer,) * 2), **more)


LLAMA3 = RopeConfig(5e5, scaling=RopeScaling("llama3", 8.0, 64))
PLAIN = LayerConfig(AttentionConfig(4, 2, 12), MlpConfig(80))
CONFIGS: dict[str, ModelConfig] = {
    "qwen3": config_of(AttentionConfig(4, 2, 8, qk_norm="head")),
    "llama": config_of(AttentionConfig(6, 3, 64, LLAMA3), head=HeadConfig(tied=False)),
    "qwen2": config_of(AttentionConfig(4, 4, 20, bias=True), d_model=33, d_ff=50),
    "biases": config_of(AttentionConfig(4, 1, 16, bias=True, output_bias=True)),
    "mistral": config_of(AttentionConfig(4, 2, 32, window=19)),
    "smollm3": config_of(
        AttentionConfig(4, 2, 12), layers=(PLAIN, replace(PLAIN, attention=AttentionConfig(4, 2, 12, None)))
    ),
    "partly turned": config_of(AttentionConfig(32, 1, 16, RopeConfig(share=0.5), scale=0.3)),
}


def random_model(config: ModelConfig, seed: int = 0) -> Decoder:
    model = Decoder(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            draw = generator(seed, "native test", name).standard_normal(parameter.shape, dtype=np.float32)
            parameter.copy_(torch.from_numpy(draw) * 0.2 + (parameter.dim() == 1 and "norm" in name))
    return model.eval()


def rung_of(model: Decoder, form: Format, **more: Any) -> NativeRung:
    rung = NativeRung(model, form, **more)
    rung.allocate(16)
    return rung


def some_tokens(seed: int, count: int = LENGTH, vocabulary: int = 97) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, vocabulary, count).astype(np.int32)


def whole(tokens: np.ndarray, blocks: list[int], wanted: int | None = None) -> Segment:
    return Segment(tokens, 0, np.array(blocks, np.int32), len(tokens) if wanted is None else wanted)


@torch.inference_mode()
def plain_logits(model: Decoder, tokens: np.ndarray) -> np.ndarray:
    return model(torch.from_numpy(tokens.astype(np.int64))[None])[0].numpy()


def difference(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", CONFIGS)
def test_logits_are_near_those_of_the_plain_model(name: str, form: Format) -> None:
    model = random_model(CONFIGS[name])
    found = rung_of(model, form).forward([whole(some_tokens(1), [5, 2, 9])])
    assert difference(found, plain_logits(model, some_tokens(1))) <= NEAR[form]


@pytest.mark.parametrize(("form", "more"), VARIANTS)
@pytest.mark.parametrize("name", ["qwen3", "llama", "mistral"])
def test_every_instruction_set_and_number_of_threads_gives_the_same_bits(
    name: str, form: Format, more: dict[str, Any]
) -> None:
    model, best = random_model(CONFIGS[name]), library.best_instructions()
    plain = rung_of(model, form, **more, instructions="scalar", threads=1)
    wanted = plain.forward([whole(some_tokens(1), [0, 1, 2])]).copy()
    for instructions in INSTRUCTIONS[: INSTRUCTIONS.index(best) + 1]:
        for threads in (1, 3):
            rung = rung_of(model, form, **more, instructions=instructions, threads=threads)
            found = rung.forward([whole(some_tokens(1), [0, 1, 2])])
            assert found.tobytes() == wanted.tobytes(), (instructions, threads)


Cut = Callable[[NativeRung, np.ndarray], np.ndarray]


def one_by_one(rung: NativeRung, tokens: np.ndarray) -> np.ndarray:
    blocks = np.array([7, 3, 11], np.int32)
    steps = [Segment(tokens[i : i + 1], i, blocks[: i // 16 + 1], 1) for i in range(len(tokens))]
    return np.concatenate([rung.forward([step]).copy() for step in steps])


def in_pieces_among_others(rung: NativeRung, tokens: np.ndarray) -> np.ndarray:
    blocks, other = np.array([10, 0, 1], np.int32), some_tokens(9, 40)
    found = []
    for number, (start, end) in enumerate([(0, 1), (1, 18), (18, 21), (21, LENGTH)]):
        at = 10 * number
        mine = Segment(tokens[start:end], start, blocks[: -(-end // 16)], end - start)
        theirs = [
            Segment(other[at : at + 10], at, np.array([4, 5, 6][: (at + 25) // 16]), 3),
            Segment(other[number : number + 1], number, np.array([8]), 0),
        ]
        logits = rung.forward([theirs[0], mine, theirs[1]])
        found.append(logits[3 : 3 + end - start].copy())
    return np.concatenate(found)


def in_the_company_of_many(rung: NativeRung, tokens: np.ndarray) -> np.ndarray:
    rung.allocate(64)
    others = [whole(some_tokens(i, LENGTH), [3 * i, 3 * i + 1, 3 * i + 2], 0) for i in range(1, 14)]
    return rung.forward([*others[:7], whole(tokens, [60, 2, 55]), *others[7:]])


@pytest.mark.parametrize("cut", [one_by_one, in_pieces_among_others, in_the_company_of_many])
@pytest.mark.parametrize(("form", "more"), VARIANTS)
@pytest.mark.parametrize("name", ["qwen3", "llama", "mistral", "partly turned"])
def test_logits_do_not_depend_on_cuts_companions_or_blocks(
    name: str, form: Format, more: dict[str, Any], cut: Cut
) -> None:
    rung, tokens = rung_of(random_model(CONFIGS[name]), form, **more), some_tokens(2)
    wanted = rung.forward([whole(tokens, [1, 2, 3])]).tobytes()
    rung = rung_of(random_model(CONFIGS[name]), form, **more)
    assert cut(rung, tokens).tobytes() == wanted


def test_a_prompt_longer_than_a_call_is_read_in_several() -> None:
    rung, tokens = NativeRung(random_model(CONFIGS["qwen3"]), "int8"), some_tokens(3, 500)
    rung.allocate(64)
    wanted = rung.forward([whole(tokens, list(range(32)))]).copy()
    blocks = np.arange(32, 64)
    rest = [
        rung.forward([Segment(tokens[i : i + 50], i, blocks[: -(-(i + 50) // 16)], 50)]).copy()
        for i in range(0, 500, 50)
    ]
    assert np.concatenate(rest).tobytes() == wanted.tobytes()
    last = rung.forward([whole(tokens, list(range(32)), 3)])
    assert last.tobytes() == wanted[-3:].tobytes()


@pytest.mark.parametrize("name", CONFIGS)
def test_keys_and_values_of_eight_bits_take_half_the_memory_and_change_little(name: str) -> None:
    model = random_model(CONFIGS[name])
    small, usual = rung_of(model, "bf16", cache="int8"), rung_of(model, "bf16")
    found = small.forward([whole(some_tokens(1), [5, 2, 9])])
    assert 0 < difference(found, plain_logits(model, some_tokens(1))) <= 0.03
    attention = model.config.layers[0].attention
    assert isinstance(attention, AttentionConfig)
    head = attention.head_dim
    assert small.bytes_per_block / usual.bytes_per_block == pytest.approx(0.5 + 4 / (head + -(-head // 16) * 16))


@pytest.mark.parametrize("cache", ["auto", "int8"])
def test_blocks_are_copied_and_put_aside(cache: Cache) -> None:
    rung, tokens = rung_of(random_model(CONFIGS["llama"]), "int4", cache=cache), some_tokens(4)
    wanted = rung.forward([whole(tokens, [0, 1, 2])]).copy()[-1:]
    kept = rung.read_blocks([0, 1, 2])
    assert kept.shape == (3, rung.bytes_per_block)
    rung.copy_block(1, 9)
    rung.forward([whole(some_tokens(5), [0, 1, 2])])
    rung.write_blocks([12, 14], kept[[0, 2]])
    for wrong in (kept[:2], kept[:, 1:], kept.astype(np.float32)):
        with pytest.raises(ModelError, match="Contents of 3 blocks were to be written"):
            rung.write_blocks([10, 11, 12], wrong)
    again = rung.forward([Segment(tokens[-1:], LENGTH - 1, np.array([12, 9, 14]), 1)]).copy()
    assert again.tobytes() == wanted.tobytes()


def test_new_weights_take_the_place_of_the_old() -> None:
    old, new = (random_model(CONFIGS["qwen3"], seed) for seed in range(2))
    rung = rung_of(old, "bf16")
    rung.update_weights(new)
    found = rung.forward([whole(some_tokens(1), [0, 1, 2])]).copy()
    assert found.tobytes() == rung_of(new, "bf16").forward([whole(some_tokens(1), [0, 1, 2])]).tobytes()
    with pytest.raises(ModelError, match="another configuration"):
        rung.update_weights(random_model(CONFIGS["llama"]))


@pytest.mark.parametrize(
    ("segment", "said"),
    [
        (Segment(np.array([97]), 0, np.array([0]), 1), "not all tokens"),
        (Segment(np.array([-1]), 0, np.array([0]), 1), "not all tokens"),
        (Segment(np.array([1]), 512, np.arange(33), 1), "places 0 to 511"),
        (Segment(np.array([1]), -1, np.array([0]), 1), "cannot be computed"),
        (Segment(np.array([], np.int32), 0, np.array([0]), 0), "cannot be computed"),
        (Segment(np.array([1]), 0, np.array([16]), 1), "16 were allocated"),
        (Segment(np.array([1]), 16, np.array([0]), 1), "take 2 blocks"),
        (Segment(np.array([1]), 0, np.array([0]), 2), "2 logits are wanted"),
    ],
)
def test_what_does_not_exist_never_reaches_the_kernels(segment: Segment, said: str) -> None:
    with pytest.raises(AthanorError, match=said):
        rung_of(random_model(CONFIGS["qwen3"]), "fp32").forward([segment])


@pytest.mark.parametrize("form", ["Q8_0", "Q4_0"])
def test_blocks_of_a_gguf_file_are_computed_with_as_they_are(form: str, tmp_path: Path) -> None:
    attention = AttentionConfig(4, 2, 16, RopeConfig(1e4))
    config = replace(config_of(attention, d_model=64, d_ff=96), family="llama")
    save_gguf(random_model(config), tmp_path / "m.gguf", form, {"tokenizer.ggml.model": "none"})
    model = load_gguf(tmp_path / "m.gguf")
    blocks = read_blocks(tmp_path / "m.gguf", model)
    assert blocks["blocks.1.attention.key.weight"].form == form
    rung = rung_of(model, "fp32", blocks=blocks)
    found = rung.forward([whole(some_tokens(1), [5, 2, 9])]).copy()
    assert difference(found, plain_logits(model, some_tokens(1))) <= 0.05
    fine = rung_of(model, "fp32", blocks=blocks, wide=True).forward([whole(some_tokens(1), [5, 2, 9])]).copy()
    assert difference(fine, plain_logits(model, some_tokens(1))) <= 2e-4
    rung.update_weights(model)
    again = rung.forward([whole(some_tokens(1), [5, 2, 9])]).copy()
    assert difference(again, found) <= 0.05


def test_other_shapes_and_formats_are_refused_with_the_reason() -> None:
    ungated = replace(PLAIN, mlp=MlpConfig(80, gated=False))
    with pytest.raises(ModelError, match="not of the Llama shape"):
        NativeRung(random_model(ModelConfig(97, 48, 64, (ungated,))), "fp32")
    with pytest.raises(ModelError, match="Accepted: fp32, bf16"):
        NativeRung(random_model(CONFIGS["qwen3"]), "int5")  # type: ignore[arg-type]
    with pytest.raises(AthanorError, match="This processor has: scalar"):
        NativeRung(random_model(CONFIGS["qwen3"]), "int4", instructions="neon")


@pytest.fixture(scope="module")
def assistant() -> Decoder:
    try:
        return load_gguf(MODELS["smollm2-135m-instruct"].fetch())
    except AthanorError as error:
        pytest.skip(f"the package cannot be had: {error}")


@pytest.mark.slow
@pytest.mark.parametrize(("form", "near"), [("fp32", 2e-5), ("bf16", 0.02), ("int8", 0.05)])
def test_a_real_model_says_what_the_plain_one_says(assistant: Decoder, form: Format, near: float) -> None:
    tokens = some_tokens(6, 60, 49_000)
    wanted = plain_logits(assistant, tokens)
    found = rung_of(assistant, form).forward([whole(tokens, [3, 1, 4, 15])])
    assert difference(found, wanted) <= near
    assert (found.argmax(1) == wanted.argmax(1)).mean() >= {"fp32": 1.0, "bf16": 0.9, "int8": 0.7}[form]


@pytest.mark.slow
def test_a_packaged_file_is_computed_with_in_its_blocks_and_without_loss(assistant: Decoder) -> None:
    tokens = some_tokens(6, 60, 49_000)
    rung = open_rung(assistant, "auto", MODELS["smollm2-135m-instruct"].fetch())
    rung.allocate(16)
    assert isinstance(rung, NativeRung)
    assert rung.weights.bytes_per_token < 1e8
    assert difference(rung.forward([whole(tokens, [3, 1, 4, 15])]), plain_logits(assistant, tokens)) <= 2e-3
