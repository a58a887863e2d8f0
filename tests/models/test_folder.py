"""The model folder: transformers computes the same from it, and a bad file is refused with a sentence that names it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from athanor.base.errors import AthanorError, ModelError
from athanor.base.randomness import generator
from athanor.models.config import AttentionConfig, HeadConfig, LayerConfig, MlpConfig, ModelConfig
from athanor.models.decoder import Decoder
from athanor.models.folder import load_model, save_model
from athanor.models.position_config import RopeConfig


def random_model(tied: bool = True, theta: float = 10_000.0) -> Decoder:
    layer = LayerConfig(AttentionConfig(4, 2, 12, position=RopeConfig(theta), qk_norm="head"), MlpConfig(48))
    config = ModelConfig(128, 32, 64, (layer,) * 2, head=HeadConfig(tied=tied))
    model = Decoder(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            draw = generator(5, "test model", name).standard_normal(parameter.shape, dtype=np.float32)
            parameter.copy_(torch.from_numpy(draw) * 0.3 + (parameter.dim() == 1))
    return model.eval()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_model(random_model(), tmp_path / "model", end_of_text_id=0, stop_ids=(1, 0), lineage={"stage": "test"})
    return tmp_path / "model"


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("theta", [10_000.0, 1e6])
def test_transformers_gives_the_same_logits(
    tied: bool, theta: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from transformers import AutoModelForCausalLM

    model = random_model(tied, theta)
    save_model(model, tmp_path, end_of_text_id=0, stop_ids=(1, 0), generation={"temperature": 0.7}, lineage={})
    peer, loading = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, output_loading_info=True)
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    assert type(peer).__name__ == "Qwen3ForCausalLM"
    assert peer.generation_config.eos_token_id == [1, 0]
    tokens = torch.arange(60).reshape(2, 30) % 128
    with torch.no_grad():
        torch.testing.assert_close(model(tokens), peer(tokens).logits, atol=1e-4, rtol=1e-4)


def test_a_folder_written_by_transformers_is_read(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).save_pretrained(tmp_path / "theirs")
    ours, theirs = load_model(folder), load_model(tmp_path / "theirs")
    assert ours.config == theirs.config
    for name, weight in ours.state_dict().items():
        assert torch.equal(weight, theirs.state_dict()[name])


def test_weights_that_are_not_numbers_are_refused(folder: Path, tmp_path: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][3] = float("nan")
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"model\.norm\.weight has values that are not numbers"):
        load_model(folder)
    model = random_model()
    with torch.no_grad():
        model.norm.weight[0] = float("inf")
    with pytest.raises(ModelError, match="diverged"):
        save_model(model, tmp_path / "out")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saving_and_loading_changes_no_bit(dtype: torch.dtype, tmp_path: Path) -> None:
    model = random_model().to(dtype)
    save_model(model, tmp_path, lineage={})
    again = load_model(tmp_path)
    assert again.config == model.config
    assert again.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(again.state_dict()[name], weight) for name, weight in model.state_dict().items())
    save_model(again, tmp_path / "again", lineage={})
    for name in ("model.safetensors", "config.json", "generation_config.json", "athanor.json"):
        assert (tmp_path / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    assert load_model(tmp_path, torch.float32).norm.weight.dtype == torch.float32


def _edit_config(**changes: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        for name, value in changes.items():
            if value is ...:
                del config[name]
            else:
                config[name] = value
        (folder / "config.json").write_text(json.dumps(config))

    return edit


def _write(name: str, data: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(data) and None  # type: ignore[func-returns-value]


def _edit_weights(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors")

    return edit


def _cut(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


NORM = "model.norm.weight"


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
        (_write("config.json", b"{"), "config.json is not valid JSON"),
        (_write("config.json", b"\xff\xfe"), "config.json is not valid JSON"),
        (_write("config.json", b"[]"), "not a JSON object"),
        (_edit_config(architectures=["MambaForCausalLM"]), "MambaForCausalLM"),
        (_edit_config(architectures=...), "no architecture"),
        (_edit_config(architectures=3), "no architecture"),
        (_edit_config(logit_softcapping=30.0), "logit_softcapping"),
        (_edit_config(attention_bias=True), r"lacks the weight model\.layers\.0\.self_attn\.q_proj\.bias"),
        (_edit_config(hidden_act="guess"), "hidden_act"),
        (_edit_config(rope_scaling={"rope_type": "yarn"}, rope_parameters=...), "yarn"),
        (_edit_config(rope_parameters=5), "config.json"),
        (_edit_config(rope_parameters={"rope_theta": "big"}), "config.json"),
        (_edit_config(layer_types=["full_attention", "sliding_attention"]), "layer_types"),
        (_edit_config(hidden_size=...), "hidden_size"),
        (_edit_config(hidden_size="32"), "hidden_size = '32'"),
        (_edit_config(hidden_size=32.5), "hidden_size = 32.5"),
        (_edit_config(vocab_size=0), "vocab_size = 0"),
        (_edit_config(num_key_value_heads=3), "n_kv_heads = 3"),
        (_edit_config(num_attention_heads=0), "n_heads = 0"),
        (_edit_config(head_dim=13), "head_dim = 13"),
        (_edit_config(rms_norm_eps="small"), "rms_norm_eps = 'small'"),
        (_edit_config(intermediate_size=64), "model.layers.0.mlp.gate_proj.weight makes a weight of shape"),
        (_edit_config(num_hidden_layers=3, layer_types=...), "lacks the weight model.layers.2"),
        (_edit_config(num_hidden_layers=1, layer_types=...), "does not have: model.layers.1"),
        (_edit_config(tie_word_embeddings=False), "lacks the weight lm_head.weight"),
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors does not exist"),
        (_cut, "not a valid safetensors file"),
        (_write("model.safetensors", b""), "not a valid safetensors file"),
        (_write("model.safetensors", os.urandom(500)), "not a valid safetensors file"),
        (_edit_weights(lambda weights: weights.pop(NORM)), f"lacks the weight {NORM}"),
        (_edit_weights(lambda weights: weights.update({NORM: torch.ones(31)})), f"{NORM} makes a weight of shape"),
        (_edit_weights(lambda weights: weights.update({NORM: torch.ones(32, dtype=torch.int64)})), NORM),
        (_edit_weights(lambda weights: weights.update(extra=torch.ones(1))), "does not have: extra"),
    ],
)
def test_a_bad_folder_is_refused_by_name(folder: Path, damage: Callable[[Path], None], named: str) -> None:
    damage(folder)
    with pytest.raises(AthanorError, match=named):
        load_model(folder)


def test_weights_may_be_read_by_whom_the_settings_may(folder: Path, tmp_path: Path) -> None:
    save_model(load_model(folder), tmp_path / "again")
    modes = {(tmp_path / "again" / name).stat().st_mode for name in ("config.json", "model.safetensors")}
    assert len(modes) == 1


def test_loading_executes_nothing(folder: Path) -> None:
    """Files that other libraries would run or unpickle are not looked at."""
    (folder / "modeling_custom.py").write_text("raise SystemExit('executed')")
    shutil.copy(folder / "model.safetensors", folder / "pytorch_model.bin")
    _edit_config(auto_map={"AutoModelForCausalLM": "modeling_custom.Model"})(folder)
    load_model(folder)


def test_loaded_weights_can_be_trained_without_touching_the_file(folder: Path) -> None:
    before = (folder / "model.safetensors").read_bytes()
    model = load_model(folder)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    assert (folder / "model.safetensors").read_bytes() == before


def test_a_disk_that_cannot_take_the_weights_leaves_what_was_there(folder: Path) -> None:
    before = (folder / "model.safetensors").read_bytes()
    code = (
        "import resource, sys; from athanor import AthanorError\n"
        "from athanor.models.folder import load_model, save_model\n"
        "model = load_model(sys.argv[1]); resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try: save_model(model, sys.argv[1])\n"
        "except AthanorError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True)
    assert "model.safetensors could not be written" in done.stdout, done.stderr
    assert (folder / "model.safetensors").read_bytes() == before
    assert not list(folder.glob(".*"))
