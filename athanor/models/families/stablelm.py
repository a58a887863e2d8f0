"""StableLM 3B and 2: Llama with layer norms, a quarter of each head turned, and biases of queries, keys and values if
switched on; its 12B has attention and MLP side by side under one norm, and normed queries and keys.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from athanor.models.config import AttentionConfig, LayerConfig, ModelConfig, NormConfig
from athanor.models.families import llama
from athanor.models.families.family import Family
from athanor.models.families.keys import Keys
from athanor.models.families.weights import Rule, stacked


def _read(keys: Keys) -> ModelConfig:
    norm = NormConfig(keys.number("layer_norm_eps", 1e-5), "layer", bias=True)
    bias, normed = keys.flag("use_qkv_bias", False), keys.flag("qk_layernorm", False)
    parallel = keys.flag("use_parallel_residual", False)

    def change(layer: LayerConfig, number: int) -> LayerConfig:
        layer = replace(layer, norm=norm, placement="parallel_shared" if parallel else "pre")
        return llama.with_attention(layer, bias=bias, qk_norm="each" if normed else None)

    return llama.read(keys, "stablelm", change=change, partial_rotary_factor=0.25, max_position_embeddings=4096)


def _write(config: ModelConfig) -> dict[str, Any]:
    layer, written = config.layers[0], llama.write(config)
    assert isinstance(layer.attention, AttentionConfig)
    written["layer_norm_eps"] = written.pop("rms_norm_eps")
    written["use_qkv_bias"] = written.pop("attention_bias")
    written["use_parallel_residual"] = layer.placement == "parallel_shared"
    del written["head_dim"]  # always hidden_size / num_attention_heads
    return written | {"qk_layernorm": layer.attention.qk_norm == "each"}


def _rules(config: ModelConfig) -> list[Rule]:
    attention, norms = config.layers[0].attention, "model.layers.*.self_attn"
    queries, keys = range(attention.n_heads), range(attention.n_kv_heads)
    return [
        *stacked("blocks.*.attention.query_norm.weight", [f"{norms}.q_layernorm.norms.{i}.weight" for i in queries]),
        *stacked("blocks.*.attention.key_norm.weight", [f"{norms}.k_layernorm.norms.{i}.weight" for i in keys]),
        *llama.rules(config),
    ]


FAMILY = Family("stablelm", ("StableLmForCausalLM",), _read, _write, _rules)
