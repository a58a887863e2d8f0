"""Granite 3: Llama with four multipliers, of the embeddings, the scores, what each part adds, and the logits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from athanor.models.config import AttentionConfig, EmbeddingConfig, LayerConfig, MlpConfig, ModelConfig
from athanor.models.families import llama
from athanor.models.families.family import Family
from athanor.models.families.keys import Keys


def _read(keys: Keys) -> ModelConfig:
    scores, residual = keys.number("attention_multiplier", 1.0), keys.number("residual_multiplier", 1.0)

    def change(layer: LayerConfig, number: int) -> LayerConfig:
        return llama.with_attention(replace(layer, residual_scale=residual), scale=scores)

    config = llama.read(keys, "granite", change=change)
    assert config.head is not None
    return replace(
        config,
        embedding=EmbeddingConfig(scale=keys.number("embedding_multiplier", 1.0)),
        head=replace(config.head, scale=1 / keys.number("logits_scaling", 1.0)),
    )


def _write(config: ModelConfig) -> dict[str, Any]:
    layer, head = config.layers[0], config.head
    assert isinstance(layer.attention, AttentionConfig)
    assert isinstance(layer.mlp, MlpConfig)
    assert head is not None
    return llama.write(config) | {
        "embedding_multiplier": config.embedding.scale,
        "attention_multiplier": layer.attention.scale,
        "residual_multiplier": layer.residual_scale,
        "logits_scaling": 1 / head.scale,
        "mlp_bias": layer.mlp.bias,
    }


FAMILY = Family("granite", ("GraniteForCausalLM",), _read, _write, llama.rules)
