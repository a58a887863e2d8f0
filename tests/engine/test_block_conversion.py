"""Blocks of formats without a kernel, converted: against the package `gguf`, and in a file that the engine opens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from athanor.engine.native.compiling import compilers
from athanor.engine.native_rung import NativeRung
from athanor.engine.rungs import WantedFormat, open_rung
from athanor.models.gguf.block_conversion import TARGETS, convert_blocks
from athanor.models.gguf.load import load_gguf
from tests.engine.test_native_rung import difference, plain_logits, some_tokens, whole

gguf = pytest.importorskip("gguf")
MOST = {**dict.fromkeys(TARGETS, 8e-3), "Q4_K": 4e-4, "Q5_0": 0.0}
SCALES = {
    "Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "Q5_0": (0,), "Q5_1": (0, 2),
}  # fmt: skip
"""Where a block has fp16 numbers."""


def random_blocks(name: str, rows: int, columns: int, seed: int = 0) -> np.ndarray:
    """(rows, bytes of a row) uint8, with scales as trained weights have them."""
    numbers, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]
    draw = np.random.default_rng(seed)
    blocks = draw.integers(0, 256, (rows * columns // numbers, size), dtype=np.uint8)
    for place in SCALES[name]:
        scales = draw.uniform(5e-5, 2e-4, (len(blocks), 1)).astype(np.float16)
        blocks[:, place : place + 2] = scales.view(np.uint8)
    return blocks.reshape(rows, -1)


@pytest.mark.parametrize("source", TARGETS)
def test_what_is_lost_is_little_and_is_said(source: str) -> None:
    blocks = random_blocks(source, 37, 768)
    made, loss = convert_blocks(torch.from_numpy(blocks), source)
    given = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[source]).astype(np.float64)
    found = gguf.quants.dequantize(made.numpy(), gguf.GGMLQuantizationType[TARGETS[source]])
    error = np.linalg.norm(found - given) / np.linalg.norm(given)
    assert error <= MOST[source]
    assert np.isclose(np.sqrt(loss.error / loss.size), error, rtol=1e-5, atol=1e-12)


MATRICES = {
    "attn_q": ("Q4_K", 256), "attn_k": ("Q5_K", 128), "attn_v": ("Q6_K", 128), "attn_output": ("Q5_0", 256),
    "ffn_gate": ("Q4_K", 512), "ffn_up": ("Q5_1", 512), "ffn_down": ("Q6_K", 256),
}  # fmt: skip


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A model of the Qwen3 shape with nearly every kind of block."""
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "qwen3")
    writer.add_context_length(64)
    writer.add_embedding_length(256)
    writer.add_block_count(2)
    writer.add_feed_forward_length(512)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_key_length(64)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(97)
    for layer in range(2):
        for number, (name, (kind, rows)) in enumerate(MATRICES.items()):
            data = random_blocks(kind, rows, 512 if name == "ffn_down" else 256, 10 * layer + number)
            writer.add_tensor(f"blk.{layer}.{name}.weight", data, raw_dtype=gguf.GGMLQuantizationType[kind])
        for name, size in (("attn_norm", 256), ("ffn_norm", 256), ("attn_q_norm", 64), ("attn_k_norm", 64)):
            writer.add_tensor(f"blk.{layer}.{name}.weight", np.ones(size, np.float32))
    writer.add_tensor("output_norm.weight", np.ones(256, np.float32))
    embedding = random_blocks("Q6_K", 97, 256, 99)
    writer.add_tensor("token_embd.weight", embedding, raw_dtype=gguf.GGMLQuantizationType.Q6_K)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tmp_path / "m.gguf"


@pytest.mark.skipif(not compilers(), reason="there is no C compiler")
@pytest.mark.parametrize(("form", "near"), [("auto", 0.02), ("int8", 0.04), ("int4", 0.04)])
def test_a_file_of_other_blocks_is_computed_with_and_the_error_told(
    form: WantedFormat, near: float, file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ATHANOR_QUIET", raising=False)
    model = load_gguf(file)
    rung = open_rung(model, form, file)
    assert isinstance(rung, NativeRung)
    rung.allocate(4)
    found = rung.forward([whole(some_tokens(1), [2, 0, 1])])
    assert difference(found, plain_logits(model, some_tokens(1))) <= near
    assert {each.source: each.matrices for each in rung.conversions} == {
        "Q4_K": 4, "Q5_K": 2, "Q6_K": 5, "Q5_0": 2, "Q5_1": 2
    }  # fmt: skip
    assert all(each.error <= MOST[each.source] for each in rung.conversions)
    said = capsys.readouterr().err
    assert "m.gguf: matrices are converted, 4 of Q4_K as Q4_1 (relative error" in said
    assert said.count("\n") == 1
