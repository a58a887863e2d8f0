"""Gemma 2: norms before and after each part, windows in every second layer, scores and logits bent by tanh."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from athanor.models.config import AttentionConfig, LayerConfig, ModelConfig
from athanor.models.families import gemma, llama
from athanor.models.families.family import Family
from athanor.models.families.keys import Keys
from athanor.models.families.weights import Rule, same
from athanor.models.families.windows import layer_kinds, read_kinds


def _read(keys: Keys) -> ModelConfig:
    norm = gemma.gemma_norm(keys)
    keys.fixed(use_bidirectional_attention=False)
    keys.settings["hidden_act"] = keys.take("hidden_activation", "gelu_pytorch_tanh")
    scale, cap = keys.number("query_pre_attn_scalar", 256) ** -0.5, keys.settings.get("attn_logit_softcapping", 50.0)
    final = keys.settings.get("final_logit_softcapping", 30.0)
    window, windowed = keys.whole("sliding_window", 4096), read_kinds(keys, lambda i: (i + 1) % 2 == 1)
    keys.ignore("attn_logit_softcapping", "final_logit_softcapping", "cache_implementation")

    def change(layer: LayerConfig, number: int) -> LayerConfig:
        layer = replace(layer, norm=norm, placement="sandwich")
        return llama.with_attention(layer, scale=scale, soft_cap=cap, window=window if windowed(number) else None)

    config = llama.read(
        keys, "gemma2", change=change, head_dim=256, tie_word_embeddings=True, max_position_embeddings=8192
    )
    assert config.head is not None
    return replace(gemma.finish(config, norm), head=replace(config.head, soft_cap=final))


def write(config: ModelConfig) -> dict[str, Any]:
    attention = config.layers[0].attention
    assert isinstance(attention, AttentionConfig)
    assert attention.scale is not None
    assert config.head is not None
    scalar = attention.scale**-2
    return llama.write(config) | {
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": round(scalar) if abs(scalar - round(scalar)) < 1e-6 * scalar else scalar,
        "attn_logit_softcapping": attention.soft_cap,
        "final_logit_softcapping": config.head.soft_cap,
        "sliding_window": next((layer.attention.window for layer in config.layers if layer.attention.window), 4096),
        "layer_types": layer_kinds(config),
    }


def rules(config: ModelConfig) -> list[Rule]:
    layer = "model.layers.*"
    return [
        *same("blocks.*.attention_norms.output", f"{layer}.post_attention_layernorm"),
        *same("blocks.*.mlp_norms.input", f"{layer}.pre_feedforward_layernorm"),
        *same("blocks.*.mlp_norms.output", f"{layer}.post_feedforward_layernorm"),
        *llama.rules(config),
    ]


FAMILY = Family("gemma2", ("Gemma2ForCausalLM",), _read, write, rules)
