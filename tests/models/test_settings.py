"""Settings in their old and new spellings say the same, and what the reference makes of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from athanor.base.errors import ModelError
from athanor.models.config import ModelConfig
from athanor.models.families import read_config
from athanor.models.folder import load_model
from athanor.models.position_config import RopeConfig
from tests.models.family_rows import DECODERS, SCALINGS
from tests.models.test_families import assert_close, reference, tokens

transformers = pytest.importorskip("transformers")

WITHOUT = ("GPT2LMHeadModel", "OPTForCausalLM", "BloomForCausalLM", "GPTBigCodeForCausalLM")
ROTARY = {name: settings for name, settings in reversed(DECODERS.values()) if name not in WITHOUT}
OLD_NAMES = ("type", "rope_type")


def old(scaling: dict[str, Any], name: str) -> dict[str, Any]:
    """Its settings as transformers before 5 wrote them. name: of the kind."""
    inside = {key: value for key, value in scaling.items() if key not in ("rope_type", "rope_theta")}
    return {"rope_theta": scaling["rope_theta"], "rope_scaling": {name: scaling["rope_type"], **inside}}


def read(architecture: str, settings: dict[str, Any]) -> ModelConfig:
    """The configuration where rotary positions are set as given, and all else as the reference writes it."""
    written = getattr(transformers, architecture).config_class(**ROTARY[architecture]).to_dict()
    kept = {key: value for key, value in written.items() if not key.startswith(("rope_", "architectures"))}
    config = read_config({"architectures": [architecture], **kept, **settings}, "config.json")[1]
    assert isinstance(config, ModelConfig)
    return config


@pytest.mark.parametrize("kind", ["default", "linear", "dynamic", "llama3", "yarn"])
@pytest.mark.parametrize("architecture", sorted(ROTARY))
def test_rotary_positions_in_their_old_and_new_place(architecture: str, kind: str) -> None:
    scaling = {"rope_theta": 5e5, "rope_type": kind, **SCALINGS.get(kind, {})}
    new = read(architecture, {"rope_parameters": scaling})
    for name in OLD_NAMES:
        assert read(architecture, old(scaling, name)) == new
    found = [layer.attention.position for layer in new.layers]
    rope = next(rope for rope in found if isinstance(rope, RopeConfig) and rope.theta == 5e5)
    assert rope.scaling is None if kind == "default" else rope.scaling is not None and rope.scaling.kind == kind
    if kind == "default":
        assert read(architecture, {"rope_theta": 5e5}) == new
        assert read(architecture, {"rope_theta": 5e5, "rope_scaling": None}) == new


@torch.inference_mode()
@pytest.mark.parametrize("name", OLD_NAMES)
@pytest.mark.parametrize("kind", SCALINGS)
def test_old_rotary_settings_give_the_same_logits(kind: str, name: str, tmp_path: Path) -> None:
    scaling = {"rope_theta": 1e4, **SCALINGS[kind]}
    theirs = reference("LlamaForCausalLM", {**ROTARY["LlamaForCausalLM"], "rope_parameters": scaling})
    theirs.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["rope_parameters"]
    (tmp_path / "config.json").write_text(json.dumps({**config, **old(scaling, name)}))
    assert_close(load_model(tmp_path)(tokens()), theirs(tokens()).logits)


@torch.inference_mode()
@pytest.mark.parametrize(
    ("architecture", "changed", "spelled"),
    [
        ("GPTNeoXForCausalLM", {"rotary_pct": 0.5}, {"rotary_pct": 0.5, "rotary_emb_base": 10_000}),
        ("Gemma3ForCausalLM", {}, {"rope_theta": 1e6, "rope_local_base_freq": 1e4, "sliding_window_pattern": 6}),
        ("StableLmForCausalLM", {}, {"rope_theta": 1e4, "partial_rotary_factor": 0.25}),
        ("DeepseekV3ForCausalLM", {}, {"rope_theta": 1e4, "rope_scaling": None}),
    ],
)
def test_families_with_old_settings_of_their_own(
    architecture: str, changed: dict[str, Any], spelled: dict[str, Any], tmp_path: Path
) -> None:
    theirs = reference(architecture, {**ROTARY[architecture], **changed})
    theirs.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    kept = {key: value for key, value in config.items() if key not in ("rope_parameters", "layer_types", *spelled)}
    (tmp_path / "config.json").write_text(json.dumps({**kept, **spelled}))
    assert_close(load_model(tmp_path)(tokens()), theirs(tokens()).logits)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"rope_parameters": {"rope_type": "default", "mrope_section": [1, 2]}}, "mrope_section"),
        ({"rope_parameters": {"rope_type": "ntk"}}, "'ntk' is not known"),
        ({"rope_parameters": {"rope_type": "yarn"}, "rope_scaling": {"type": "linear", "factor": 2.0}}, "they differ"),
        ({"rope_parameters": {"rope_type": "longrope", **SCALINGS["longrope"], "long_factor": [1.0]}}, "long factors"),
        ({"rope_theta": 0}, "rope_theta = 0"),
        ({"rope_parameters": {"rope_theta": -1.0}}, "rope_theta = -1"),
        ({"rope_parameters": {"partial_rotary_factor": 0}}, "partial_rotary_factor = 0"),
    ],
)  # fmt: skip
def test_rotary_positions_that_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        read("LlamaForCausalLM", settings)


def test_the_length_that_a_file_does_not_tell_is_the_familys() -> None:
    """It decides on how far positions are stretched."""
    settings = {"rope_parameters": {"rope_theta": 1e4, **SCALINGS["longrope"]}}
    for architecture, length in (("Phi3ForCausalLM", 4096), ("LlamaForCausalLM", 2048)):
        config = read(architecture, {**settings, "max_position_embeddings": None})
        rope = config.layers[0].attention.position
        assert config.max_seq_len == length
        assert isinstance(rope, RopeConfig)
        assert rope.scaling is not None
        assert rope.scaling.factor == length / 16


@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
def test_the_number_format_is_that_of_the_weights(name: str, tmp_path: Path) -> None:
    """Whatever the settings call it."""
    reference("LlamaForCausalLM", ROTARY["LlamaForCausalLM"]).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config.pop("dtype", None)
    (tmp_path / "config.json").write_text(json.dumps({**config, name: "bfloat16"}))
    assert next(load_model(tmp_path).parameters()).dtype == torch.float32
    assert next(load_model(tmp_path, torch.bfloat16).parameters()).dtype == torch.bfloat16
