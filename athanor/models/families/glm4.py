"""GLM-4: norms before and after each part, half of each head turned pair by pair, gate and up in one matrix on disk."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from athanor.models.config import LayerConfig, MlpConfig, ModelConfig
from athanor.models.families import llama, phi3
from athanor.models.families.family import Family
from athanor.models.families.keys import Keys
from athanor.models.families.weights import Rule, same
from athanor.models.position_config import RopeConfig


def _read(keys: Keys) -> ModelConfig:
    def change(layer: LayerConfig, number: int) -> LayerConfig:
        rope = layer.attention.position
        assert isinstance(rope, RopeConfig)
        layer = replace(layer, placement="sandwich")
        return llama.with_attention(layer, output_bias=False, position=replace(rope, interleaved=True))

    return llama.read(
        keys, "glm4", change=change, head_dim=128, attention_bias=True, partial_rotary_factor=0.5,
        max_position_embeddings=131_072,
    )  # fmt: skip


def _write(config: ModelConfig) -> dict[str, Any]:
    return llama.write(config)


def _rules(config: ModelConfig) -> list[Rule]:
    layer, mlp = "model.layers.*", config.layers[0].mlp
    assert isinstance(mlp, MlpConfig)
    return [
        *same("blocks.*.attention_norms.output", f"{layer}.post_self_attn_layernorm"),
        *same("blocks.*.mlp_norms.output", f"{layer}.post_mlp_layernorm"),
        *phi3.fused_gate(mlp.d_ff),
        *llama.rules(config),
    ]


FAMILY = Family("glm4", ("Glm4ForCausalLM",), _read, _write, _rules)
