"""OLMo 2: norms of each part's output instead of its input, queries and keys normed whole."""

from __future__ import annotations

from dataclasses import replace

from athanor.models.config import LayerConfig, ModelConfig
from athanor.models.families import llama
from athanor.models.families.family import Family
from athanor.models.families.keys import Keys
from athanor.models.families.weights import Rule, same


def _read(keys: Keys) -> ModelConfig:
    def change(layer: LayerConfig, number: int) -> LayerConfig:
        return llama.with_attention(replace(layer, placement="after"), qk_norm="projection")

    return llama.read(keys, "olmo2", change=change)


def _rules(config: ModelConfig) -> list[Rule]:
    layer = "model.layers.*"
    return [
        *same("blocks.*.attention_norms.output", f"{layer}.post_attention_layernorm"),
        *same("blocks.*.mlp_norms.output", f"{layer}.post_feedforward_layernorm"),
        *llama.rules(config),
    ]


FAMILY = Family("olmo2", ("Olmo2ForCausalLM",), _read, llama.write, _rules)
