"""Model folders that lie: whatever stands in `config.json`, in an index or in a safetensors file, loading gives a model
or a sentence, soon, and without taking memory for what is not there.
"""

from __future__ import annotations

import json
import os
import resource
import struct
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from athanor.base.errors import ModelError
from athanor.models.families import families, read_config
from athanor.models.folder import load_model, save_model
from tests.models.family_rows import DECODERS, ENCODERS, PAIRS
from tests.models.test_families import reference
from tests.models.test_folder import random_model

transformers = pytest.importorskip("transformers")

ROWS = {**DECODERS, **ENCODERS, **PAIRS}
FIRST = {architecture: changed for architecture, changed in reversed(ROWS.values())}
"""The settings of a row for each architecture."""
FAMILIES = sorted(
    next(name for name in family.architectures if name in FIRST)
    for family in families().values()
    if family.name != "qwen3_ngrams"  # which transformers does not know
)

VALUES: list[Any] = [
    None, -1, 0, 1, 3, 1.5, -0.5, 1e308, 10**30, 10**400, 2**31 - 1, 100_000, "x", "7", [], [1], ["full_attention"], {},
    {"a": {"b": [1]}}, float("nan"), float("inf"), True, False,
]  # fmt: skip
ROPE: dict[str, Any] = {
    "rope_theta": 1e4, "factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "beta_fast": 32, "beta_slow": 1,
    "original_max_position_embeddings": 16, "short_factor": [1.0] * 6, "long_factor": [1.0] * 6, "mscale": 1.0,
    "mscale_all_dim": 1.0, "attention_factor": 1.0, "truncate": True, "partial_rotary_factor": 0.5,
}  # fmt: skip
OF_ROPE = ("LlamaForCausalLM", "DeepseekV3ForCausalLM", "Gemma3ForCausalLM")  # the others read it as Llama does
KINDS = ("linear", "dynamic", "llama3", "yarn", "longrope")


def written(architecture: str) -> dict[str, Any]:
    """The `config.json` of the family's first row, with every key that transformers has for it."""
    kind = getattr(transformers, architecture).config_class
    saved: dict[str, Any] = kind(**FIRST[architecture]).to_dict()
    return {**saved, "architectures": [architecture]}


def mistaken(config: dict[str, Any]) -> Any:
    """The same with one hostile value, for every key and value; the name of what was changed beside it."""
    for name in [*config, "rope_scaling", "rope_theta", "layer_types"]:
        values = list(VALUES)
        if isinstance(found := config.get(name), list):
            values += [[value] * len(found) for value in VALUES]
        for value in values:
            yield name, {**config, name: value}
        yield name, {key: value for key, value in config.items() if key != name}
    if config["architectures"][0] in OF_ROPE:
        for kind in KINDS:
            for name, value in ((name, value) for name in (*ROPE, "rope_type") for value in VALUES):
                changed = {**ROPE, "rope_type": kind, name: value}
                yield f"rope_parameters.{name}", {**config, "rope_parameters": changed}


def accepted(config: dict[str, Any]) -> Any:
    """What is read, or None where it is refused."""
    try:
        return read_config(config, "config.json")[1]
    except ModelError as error:
        return pytest.fail(f"a message of {len(str(error))} characters") if len(str(error)) > 2000 else None


@pytest.mark.parametrize("architecture", FAMILIES)
def test_any_value_of_any_setting(architecture: str, tmp_path: Path) -> None:
    reference(architecture, FIRST[architecture]).save_pretrained(tmp_path)
    config, plain = written(architecture), load_model(tmp_path).config
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number, (name, changed) in enumerate(mistaken(config)):
        start = time.perf_counter()
        if (
            accepted(changed) not in (None, plain) and number % 16 == 0
        ):  # each takes milliseconds, and there are thousands
            (tmp_path / "config.json").write_text(json.dumps(changed))
            with suppress(ModelError):
                load_model(tmp_path)
        assert time.perf_counter() - start < 10, name  # on a machine that does something else, too
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 500_000, f"{grown} kB more"


@pytest.mark.parametrize("architecture", sorted(FIRST))
def test_what_transformers_writes_is_accepted(architecture: str) -> None:
    config = written(architecture)
    read_config(config, "config.json")
    read_config({**config, "torch_dtype": "bfloat16", "dtype": "bfloat16", "_name_or_path": "a/b"}, "config.json")


@pytest.mark.parametrize("architecture", FAMILIES)
def test_an_unknown_setting_is_refused_by_name(architecture: str) -> None:
    config = written(architecture)
    for value in (1, 0.5, "some", True, [0], {"a": 1}):
        with pytest.raises(ModelError) as raised:
            read_config({**config, "soft_gating": value}, "config.json")
        assert architecture in str(raised.value)
        assert "soft_gating" in str(raised.value)
    plain = read_config(config, "config.json")
    for value in (None, False, 0, "", [], {}):
        assert read_config({**config, "soft_gating": value}, "config.json") == plain


HONOURED_AT_ONE_VALUE = [
    ("GPT2LMHeadModel", {"scale_attn_by_inverse_layer_idx": True}),
    ("GPT2LMHeadModel", {"scale_attn_weights": False}),
    ("GPT2LMHeadModel", {"add_cross_attention": True}),
    ("GPTBigCodeForCausalLM", {"num_key_value_heads": 2}),
    ("BloomForCausalLM", {"apply_residual_connection_post_layernorm": True}),
    ("FalconForCausalLM", {"apply_residual_connection_post_layernorm": True}),
    ("OPTForCausalLM", {"layer_norm_elementwise_affine": False}),
    ("OPTForCausalLM", {"share_decoder_input_output_embed": False}),
    ("BertForMaskedLM", {"position_embedding_type": "relative_key"}),
    ("BertForMaskedLM", {"is_decoder": True}),
    ("BertModel", {"pooler_type": "mean"}),
    ("GemmaForCausalLM", {"use_bidirectional_attention": True}),
    ("DeepseekV3ForCausalLM", {"num_key_value_heads": 2}),
    ("DeepseekV3ForCausalLM", {"moe_layer_freq": 2}),
    ("DeepseekV3ForCausalLM", {"head_dim": 20}),
    ("DeepseekV3ForCausalLM", {"scoring_func": "softmax"}),
    ("T5ForConditionalGeneration", {"dense_act_fn": "gelu"}),
    ("T5ForConditionalGeneration", {"is_gated_act": True}),
    ("SwitchTransformersForConditionalGeneration", {"num_selected_experts": 2}),
    ("SwitchTransformersForConditionalGeneration", {"batch_prioritized_routing": True}),
    ("SwitchTransformersForConditionalGeneration", {"router_bias": True}),
    ("BartForConditionalGeneration", {"normalize_before": True}),
    ("BartForConditionalGeneration", {"static_position_embeddings": True}),
    ("MarianMTModel", {"normalize_embedding": True}),
    ("MarianMTModel", {"add_bias_logits": True}),
    ("M2M100ForConditionalGeneration", {"add_final_layer_norm": False}),
]


@pytest.mark.parametrize(("architecture", "changed"), HONOURED_AT_ONE_VALUE)
def test_what_would_be_computed_otherwise_is_refused(architecture: str, changed: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match=next(iter(changed))) as raised:
        read_config({**written(architecture), **changed}, "config.json")
    assert architecture in str(raised.value)


PUBLISHED: list[tuple[str, dict[str, Any]]] = [
    ("LlamaForCausalLM", {"is_llama_config": True, "rope_interleaved": False, "transformers.js_config": {"a": 1}}),
    ("GPT2LMHeadModel", {"n_ctx": 64, "_num_labels": 1, "task_specific_params": {"text-generation": {"a": 1}}}),
    ("BertForMaskedLM", {
        "directionality": "bidi", "pooler_fc_size": 768, "pooler_num_attention_heads": 12, "pooler_num_fc_layers": 3,
        "pooler_size_per_head": 128, "pooler_type": "first_token_transform"}),
    ("RobertaForMaskedLM", {"output_past": True}),
    ("BartForConditionalGeneration", {
        "add_bias_logits": False, "add_final_layer_norm": False, "normalize_before": False, "normalize_embedding": True,
        "static_position_embeddings": False, "num_beams": 4, "min_length": 56, "early_stopping": True,
        "no_repeat_ngram_size": 3, "_num_labels": 3, "output_past": True, "force_bos_token_to_be_generated": False}),
    ("MarianMTModel", {
        "normalize_embedding": False, "static_position_embeddings": True, "bad_words_ids": [[95]], "max_length": 512}),
]  # fmt: skip


@pytest.mark.parametrize(("architecture", "more"), PUBLISHED)
def test_keys_of_published_folders(architecture: str, more: dict[str, Any]) -> None:
    """As the hub has them, beside those that transformers writes today."""
    assert read_config({**written(architecture), **more}, "c")[1] == read_config(written(architecture), "c")[1]


def folder_of(path: Path) -> Path:
    save_model(random_model(), path)
    return path


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    """A sound folder, and its weights."""
    folder = folder_of(tmp_path_factory.mktemp("hostile"))
    return folder, (folder / "model.safetensors").read_bytes()


def attempt(folder: Path, data: bytes) -> bool:
    """Whether the folder loads with these weights; anything but a sentence or a model is a failure."""
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / "config.json").write_bytes((folder / "config.json").read_bytes())
        (Path(place) / "model.safetensors").write_bytes(data)
        try:
            load_model(place)
        except ModelError:
            return False
        return True


def test_weights_cut_at_any_byte_are_refused(small: tuple[Path, bytes]) -> None:
    folder, data = small
    assert attempt(folder, data)
    header = 8 + struct.unpack("<Q", data[:8])[0]
    for end in [*range(40), *range(40, header + 8, 29), *range(header + 8, len(data), 4999), len(data) - 1]:
        assert not attempt(folder, data[:end]), end


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2500), st.integers(0, 255)), min_size=1, max_size=4))
def test_weights_with_changed_bytes_never_crash(small: tuple[Path, bytes], changes: list[tuple[int, int]]) -> None:
    data = bytearray(small[1])
    for place, value in changes:
        data[place] = value
    attempt(small[0], bytes(data))


NORM = "model.norm.weight"


@pytest.mark.parametrize(
    "entry",
    [
        *({"shape": shape} for shape in (
            [], [0], [-1], [1.5], ["a"], None, {}, [32, 0], [2**62], [2**64], [2**32, 2**32], [0, 2**60], [1] * 999)),
        *({"data_offsets": offsets} for offsets in (
            [0, 0], [0, 2**63], [2**64, 2**65], [-5, 10], [10, 5], [0], [], [0, 1, 2], None, "x")),
        *({"dtype": dtype} for dtype in ("F64", "I64", "BOOL", "BF16", "F8_E4M3", "F4", "C64", "X", "", None, 3)),
    ],
    ids=str,
)  # fmt: skip
def test_a_header_that_lies(small: tuple[Path, bytes], entry: dict[str, Any]) -> None:
    folder, data = small
    end = 8 + struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:end])
    header[NORM] |= entry
    changed = json.dumps(header).encode()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert not attempt(folder, struct.pack("<Q", len(changed)) + changed + data[end:])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


@pytest.mark.parametrize("length", [0, 1, 2**31, 2**40, 2**62, 2**63, 2**64 - 1])
def test_a_length_of_the_header_that_lies(small: tuple[Path, bytes], length: int) -> None:
    assert not attempt(small[0], struct.pack("<Q", length) + small[1][8:])


@pytest.mark.parametrize(
    "index",
    [
        [], {}, 5, None, {"weight_map": None}, {"weight_map": []}, {"weight_map": {}},
        *({"weight_map": {NORM: name}} for name in (
            5, None, ["a"], "", ".", "..", "../model.safetensors", "/etc/passwd", "a/b", "a\0b", "x" * 5000, "\ud800",
            "missing.safetensors", "config.json", "model.safetensors.index.json", "part.safetensors")),
        {"weight_map": {NORM: "model.safetensors", "lm_head.weight": "copy.safetensors"}},
    ],
    ids=lambda index: str(index)[:60],
)  # fmt: skip
def test_an_index_that_lies(index: Any, tmp_path: Path) -> None:
    folder_of(tmp_path)
    (tmp_path / "copy.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes())
    (tmp_path / "part.safetensors").mkdir()
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError):
        load_model(tmp_path)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads what Linux says of a process")
def test_loading_takes_the_memory_of_the_weights(tmp_path: Path) -> None:
    """As they are on disk, and in another number format: measured in a process of its own."""
    code = (
        "import re, sys, torch, athanor.models.folder as f\n"
        "peak = lambda: 1024 * int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])\n"
        "f.load_model(sys.argv[2], torch.float32); before = peak()\n"
        "model = f.load_model(sys.argv[1], torch.float32 if sys.argv[3] == 'fp32' else None)\n"
        "print((peak() - before) / sum(p.nbytes for p in model.parameters()))"
    )
    from athanor.models.build import empty
    from athanor.models.config import standard_config

    model = empty(standard_config(40_000, 64, d_model=768, n_layers=2)).to(torch.bfloat16).to_empty(device="cpu")
    for parameter in model.parameters():
        torch.nn.init.ones_(parameter)
    save_model(model, tmp_path / "large")
    small = folder_of(tmp_path / "small")
    for dtype in ("bf16", "fp32"):
        arguments = [sys.executable, "-c", code, str(tmp_path / "large"), str(small), dtype]
        done = subprocess.run(arguments, capture_output=True, text=True, check=True, env={**os.environ})
        assert 0.8 < float(done.stdout) < 1.25, (dtype, done.stdout)  # 150 MB; large ones stay within 1.1
