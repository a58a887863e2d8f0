"""GGUF: number formats against the package `gguf`, models against their Hugging Face folder, and files that lie."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from athanor.base.errors import ModelError
from athanor.models.build import build
from athanor.models.config import ModelConfig, standard_config
from athanor.models.decoder import Decoder
from athanor.models.folder import load_model, save_model, their_weights
from athanor.models.gguf.load import load_gguf
from athanor.models.gguf.quants import FORMATS, unpack
from athanor.models.gguf.reader import GgufFile

gguf = pytest.importorskip("gguf")


@pytest.mark.parametrize("kind", [kind for kind, form in FORMATS.items() if form.unpack], ids=lambda k: FORMATS[k].name)
def test_numbers_are_unpacked_as_the_reference_does(kind: int) -> None:
    form = FORMATS[kind]
    data = np.random.default_rng(kind).integers(0, 256, (700, form.size), dtype=np.uint8)
    for place in {0, 2, 208} if form.numbers == 256 else {0, 2}:  # scales that are not infinite
        if place + 2 <= form.size:
            data[:, place + 1] &= 0xBF
    wanted = gguf.quants.dequantize(data, gguf.GGMLQuantizationType(kind))
    got = unpack(data.reshape(-1), form, (700, form.numbers)).numpy()
    finite = np.isfinite(wanted)
    assert finite.mean() > 0.9
    np.testing.assert_array_equal(got[finite], wanted[finite])


def llama_like(vocab_size: int = 64) -> ModelConfig:
    from dataclasses import replace

    from athanor.models.families import llama

    config = standard_config(vocab_size, 64, d_model=64, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=16, d_ff=96)
    layers = tuple(llama.with_attention(layer, qk_norm=None) for layer in config.layers)
    return replace(config, layers=layers, family="llama")


def permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """As llama.cpp's converter stores queries and keys of Llama."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}  # fmt: skip


def write(path: Path, model: Decoder, architecture: str, kind: Any = None) -> None:
    """With the reference's own writer."""
    writer = gguf.GGUFWriter(path, architecture)
    attention = model.config.layers[0].attention
    writer.add_context_length(model.config.max_seq_len)
    writer.add_embedding_length(model.config.d_model)
    writer.add_block_count(model.config.n_layers)
    writer.add_feed_forward_length(96)
    writer.add_head_count(attention.n_heads)
    writer.add_head_count_kv(attention.n_kv_heads)
    writer.add_key_length(attention.key_dim)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(model.config.vocab_size)
    for name, weight in their_weights(model).items():
        value = weight.numpy()
        if architecture == "llama" and "q_proj" in name:
            value = permuted(value, attention.n_heads)
        if architecture == "llama" and "k_proj" in name:
            value = permuted(value, attention.n_kv_heads)
        stem = name.removesuffix(".weight")
        parts = stem.split(".", 3)
        ours = NAMES[stem] if stem in NAMES else f"blk.{parts[2]}.{NAMES[parts[3]]}"
        if kind is not None and value.ndim == 2:
            writer.add_tensor(f"{ours}.weight", gguf.quants.quantize(value, kind), raw_dtype=kind)
        else:
            writer.add_tensor(f"{ours}.weight", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(params=["llama", "qwen3"])
def model(request: Any) -> Decoder:
    config = llama_like()
    if request.param == "qwen3":
        config = standard_config(64, 64, d_model=64, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=16, d_ff=96)
    model = build(config, 0).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2))
    return model


@pytest.mark.parametrize("kind", [None, "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_a_model_is_the_one_that_was_converted(model: Decoder, kind: str | None, tmp_path: Path) -> None:
    form = None if kind is None else gguf.GGMLQuantizationType[kind]
    write(tmp_path / "m.gguf", model, model.config.family, form)
    loaded = load_gguf(tmp_path / "m.gguf")
    assert loaded.config.layers == model.config.layers
    tokens = torch.arange(40).view(2, 20)
    with torch.inference_mode():
        ours, wanted = loaded(tokens), model(tokens)
    if kind is None:
        torch.testing.assert_close(ours, wanted, atol=1e-6, rtol=1e-5)
    else:
        error = (ours - wanted).norm() / wanted.norm()
        assert error < {"F16": 0.01, "BF16": 0.02, "Q8_0": 0.03}.get(kind, 0.4)
    save_model(loaded, tmp_path / "folder")
    with torch.inference_mode():
        again = load_model(tmp_path / "folder")
        assert isinstance(again, Decoder)
        torch.testing.assert_close(again(tokens), ours)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("gguf") / "m.gguf"
    write(path, build(llama_like(32), 0), "llama", gguf.GGMLQuantizationType.Q4_0)
    return path.read_bytes()


def attempt(path: Path, data: bytes) -> bool:
    """Whether the file loads; anything but a sentence or a model is a failure."""
    path.write_bytes(data)
    try:
        load_gguf(path)
    except ModelError:
        return False
    return True


def test_a_file_cut_at_any_byte_is_refused(small: bytes, tmp_path: Path) -> None:
    assert attempt(tmp_path / "m.gguf", small)
    header = small.index(b"blk.1.ffn_up.weight") + 100
    for end in [*range(header), *range(header, len(small), 997), len(small) - 1]:
        assert not attempt(tmp_path / "m.gguf", small[:end]), end


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2500), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_file_with_changed_bytes_never_crashes(changes: list[tuple[int, int]]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.gguf"
        write(path, build(llama_like(32), 0), "llama")
        data = bytearray(path.read_bytes())
        for place, value in changes:
            data[place] = value
        attempt(path, bytes(data))


def header(*parts: bytes, tensors: int = 0, values: int = 0, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, values) + b"".join(parts)


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def tensor(name: bytes, *shape: int, kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (b"", "cannot be read"),
        (b"GGML" + bytes(20), "does not begin with GGUF"),
        (header(version=1), "version 1"),
        (header(tensors=1 << 60), "do not fit"),
        (header(values=1 << 60), "do not fit"),
        (header(struct.pack("<Q", 1 << 62), bytes(40), values=1), "name of"),
        (header(text(b"a"), struct.pack("<I", 99), bytes(40), values=1), "unknown kind 99"),
        (header(text(b"a"), struct.pack("<IIQ", 9, 6, 1 << 61), bytes(40), values=1), "do not fit"),
        (header(text(b"a"), struct.pack("<IIQIQIQ", 9, 9, 1, 9, 1, 9, 1), bytes(80), values=1), "unknown kind 9"),
        (header(text(b"general.alignment"), struct.pack("<II", 4, 3), bytes(40), values=1), "alignment of 3"),
        (header(tensor(b"x", 1, 1, 1, 1, 1), bytes(64), tensors=1), "5 dimensions"),
        (header(tensor(b"x", 32, kind=77), bytes(64), tensors=1), "number format 77"),
        (header(tensor(b"x", 33, kind=2), bytes(64), tensors=1), "shape"),
        (header(tensor(b"x", 1 << 40, 1 << 40), bytes(64), tensors=1), "shape"),
        (header(tensor(b"x", 64), bytes(64), tensors=1), "does not lie within"),
        (header(tensor(b"x", 4, offset=1 << 63), bytes(64), tensors=1), "does not lie within"),
        (header(tensor(b"x", 4, offset=3), bytes(64), tensors=1), "does not lie within"),
        (header(tensor(b"x", 8), tensor(b"x", 8), bytes(128), tensors=2), "two tensors are named x"),
    ],
)  # fmt: skip
def test_a_lying_file_has_a_sentence(data: bytes, named: str, tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(data)
    with pytest.raises(ModelError, match=named):
        GgufFile(tmp_path / "m.gguf")
