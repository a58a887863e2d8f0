"""Phi-3: Llama with queries, keys and values in one matrix on disk, gate and up in another, and LongRoPE."""

from __future__ import annotations

from typing import Any

from athanor.models.config import AttentionConfig, LayerConfig, MlpConfig, ModelConfig
from athanor.models.families import llama
from athanor.models.families.family import Family
from athanor.models.families.keys import Keys
from athanor.models.families.weights import Rule, fused
from athanor.models.position_config import RopeConfig


def _read(keys: Keys) -> ModelConfig:
    window = keys.take("sliding_window")
    keys.ignore("original_max_position_embeddings")

    def change(layer: LayerConfig, number: int) -> LayerConfig:
        return llama.with_attention(layer, window=window)

    return llama.read(keys, "phi3", change=change, max_position_embeddings=4096)


def _write(config: ModelConfig) -> dict[str, Any]:
    rope = config.layers[0].attention.position
    scaling = rope.scaling if isinstance(rope, RopeConfig) else None
    return llama.write(config) | {
        "sliding_window": config.layers[0].attention.window,
        "original_max_position_embeddings": scaling.original_length if scaling else config.max_seq_len,
    }


def rules(config: ModelConfig) -> list[Rule]:
    attention, mlp = config.layers[0].attention, config.layers[0].mlp
    assert isinstance(attention, AttentionConfig)
    assert isinstance(mlp, MlpConfig)
    queries, keys = attention.n_heads * attention.head_dim, attention.n_kv_heads * attention.head_dim
    parts = [f"blocks.*.attention.{name}" for name in ("query", "key", "value")]
    return [
        *fused(parts, "model.layers.*.self_attn.qkv_proj", (queries, keys, keys)),
        *fused_gate(mlp.d_ff),
        *llama.rules(config),
    ]


def fused_gate(d_ff: int) -> list[Rule]:
    """Gate and up in one matrix."""
    return fused(["blocks.*.mlp.gate", "blocks.*.mlp.up"], "model.layers.*.mlp.gate_up_proj", (d_ff, d_ff))


FAMILY = Family("phi3", ("Phi3ForCausalLM",), _read, _write, rules)
