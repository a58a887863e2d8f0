"""Every decoder that llama.cpp knows, written as GGUF and read again; formats against the package `gguf`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import athanor.models as models
from athanor.base.errors import ModelError
from athanor.models.build import build
from athanor.models.config import standard_config
from athanor.models.decoder import Decoder
from athanor.models.folder import save_model
from athanor.models.gguf.load import load_gguf
from athanor.models.gguf.packing import format_named, pack
from athanor.models.gguf.quants import unpack
from athanor.models.gguf.reader import GgufFile
from athanor.models.gguf.save import FORMATS, save_gguf
from tests.models.family_rows import DECODERS, DEEPSEEK, SCALINGS
from tests.models.test_families import reference, tokens

gguf = pytest.importorskip("gguf")

NOT_THERE = {
    "opt": "does not know the family 'opt'",
    "opt, 350M": "does not know the family 'opt'",
    "falcon, ALiBi": "RopeConfig would stand for Alibi",
    "gpt_neox, in sequence": "bias would be True instead of False",
    "llama, dynamic": "no dynamic rope scaling",
    "qwen3_moe": "MoeConfig would stand for MlpConfig in layer 1",
    "gemma2": "scale would be 0.25",
    "gemma3": "scale would be 0.25",
    "deepseek_v3, YaRN": "position would be",
    "stablelm, 2 12B": "activation would be silu instead of gelu",
    "starcoder2, no window, no biases, untied": "would be True instead of False",
}
"""Rows that llama.cpp does not compute, and what is said."""

OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3_moe, all sparse": ("Qwen3MoeForCausalLM", {**DECODERS["qwen3_moe"][1], "mlp_only_layers": []}),
    "gemma2, scaled by head": ("Gemma2ForCausalLM", {**DECODERS["gemma2"][1], "query_pre_attn_scalar": 16}),
    "gemma3, scaled by head": ("Gemma3ForCausalLM", {**DECODERS["gemma3"][1], "query_pre_attn_scalar": 16}),
    "stablelm, 2 12B, untied": ("StableLmForCausalLM", {
        **DECODERS["stablelm, 2 12B"][1], "tie_word_embeddings": False, "hidden_act": "silu"}),
    "deepseek_v3, YaRN of one scale": ("DeepseekV3ForCausalLM", {
        **DEEPSEEK, "rope_parameters": {"rope_theta": 1e4, **SCALINGS["yarn"], "mscale": 0.7, "mscale_all_dim": 0.7}}),
}  # fmt: skip
ROWS = {**{name: row for name, row in DECODERS.items() if name not in NOT_THERE}, **OTHERS}


def theirs_as_ours(row: tuple[str, dict[str, Any]], folder: Path) -> Decoder:
    reference(*row).save_pretrained(folder)
    model = models.load(folder)
    assert isinstance(model, Decoder)
    return model


@torch.inference_mode()
@pytest.mark.parametrize("name", ROWS)
def test_there_and_back(name: str, tmp_path: Path) -> None:
    """The same logits after reading, and again after saving what was read as a folder."""
    ours = theirs_as_ours(ROWS[name], tmp_path / "folder")
    config = save_gguf(ours, tmp_path / "m.gguf", "F32")
    ids = tokens(2, min(24, config.max_seq_len))
    wanted = ours(ids)
    read = load_gguf(tmp_path / "m.gguf")
    assert (read(ids) - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    save_model(read, tmp_path / "again")
    again = models.load(tmp_path / "again")
    assert torch.equal(again(ids), read(ids))


@pytest.mark.parametrize("name", NOT_THERE)
def test_what_llama_cpp_does_not_compute_is_refused(name: str, tmp_path: Path) -> None:
    ours = theirs_as_ours(DECODERS[name], tmp_path / "folder")
    with pytest.raises(ModelError, match=NOT_THERE[name]):
        save_gguf(ours, tmp_path / "m.gguf")
    assert not (tmp_path / "m.gguf").exists()


def test_a_context_ends_with_a_window_that_is_not_followed(tmp_path: Path) -> None:
    ours = theirs_as_ours(DECODERS["mistral"], tmp_path / "folder")
    assert save_gguf(ours, tmp_path / "m.gguf").max_seq_len == 7
    assert load_gguf(tmp_path / "m.gguf").config.max_seq_len == 7


@pytest.mark.parametrize("name", [*FORMATS, "Q4_1"])
def test_numbers_are_packed_as_the_reference_does(name: str) -> None:
    draw = np.random.default_rng(0)
    rows = draw.standard_normal((50, 64), dtype=np.float32) * np.exp(draw.uniform(-12, 6, (50, 1))).astype(np.float32)
    rows[0] = 0
    rows[1, :32] = np.arange(-16, 16)
    kind = gguf.GGMLQuantizationType[name]
    wanted = gguf.quants.quantize(rows, kind)
    packed = pack(torch.from_numpy(rows), name)
    np.testing.assert_array_equal(packed, wanted.view(np.uint8).reshape(-1))
    unpacked = unpack(packed, format_named(name)[1], rows.shape)
    np.testing.assert_array_equal(unpacked.float().numpy(), gguf.quants.dequantize(wanted, kind))


@pytest.mark.parametrize("form", FORMATS)
def test_the_reference_reads_what_was_written(form: str, tmp_path: Path) -> None:
    model = build(standard_config(96, 64, d_model=64, n_layers=2, n_heads=2, head_dim=32, d_ff=96), 0)
    words = {"tokenizer.ggml.tokens": ["a", "ü"], "tokenizer.ggml.scores": [0.5, -1.0], "flags": [True, False]}
    save_gguf(model, tmp_path / "m.gguf", form, {"general.name": "Größe", "big": 1 << 40, **words})
    file = gguf.GGUFReader(tmp_path / "m.gguf")
    assert file.fields["general.name"].contents() == "Größe"
    assert file.fields["big"].contents() == 1 << 40
    assert {key: file.fields[key].contents() for key in words} == words
    assert GgufFile(tmp_path / "m.gguf").metadata["tokenizer.ggml.tokens"] == ["a", "ü"]
    kinds = {tensor.name: tensor.tensor_type.name for tensor in file.tensors}
    assert kinds["blk.0.attn_q.weight"] == form
    assert kinds["blk.0.attn_norm.weight"] == "F32"
    assert kinds["token_embd.weight"] == ("Q8_0" if form == "Q4_0" else form)
    for tensor in file.tensors:
        read = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        np.testing.assert_array_equal(read, GgufFile(tmp_path / "m.gguf").read(tensor.name).float().numpy())


def test_rows_that_no_block_fits_stay_in_half_precision(tmp_path: Path) -> None:
    model = build(standard_config(96, 64, d_model=48, n_layers=1, n_heads=2, head_dim=32, d_ff=96), 0)
    save_gguf(model, tmp_path / "m.gguf", "Q4_0")
    file = GgufFile(tmp_path / "m.gguf")
    assert file.tensors["blk.0.attn_q.weight"].format.name == "F16"
    assert file.tensors["blk.0.attn_output.weight"].format.name == "Q4_0"


def test_an_unknown_format_is_refused(tmp_path: Path) -> None:
    model = build(standard_config(96, 64, d_model=48, n_layers=1), 0)
    with pytest.raises(ModelError, match="F32, F16, BF16, Q8_0, Q4_0"):
        save_gguf(model, tmp_path / "m.gguf", "Q6_K")
