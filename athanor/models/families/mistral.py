"""Mistral: Llama with a sliding window in every layer."""

from __future__ import annotations

from typing import Any

from athanor.models.config import LayerConfig, ModelConfig
from athanor.models.families import llama
from athanor.models.families.family import Family
from athanor.models.families.keys import Keys


def _read(keys: Keys) -> ModelConfig:
    window = keys.take("sliding_window")

    def change(layer: LayerConfig, number: int) -> LayerConfig:
        return llama.with_attention(layer, window=window)

    return llama.read(keys, "mistral", change=change, max_position_embeddings=131_072)


def _write(config: ModelConfig) -> dict[str, Any]:
    return llama.write(config) | {"sliding_window": config.layers[0].attention.window}


FAMILY = Family("mistral", ("MistralForCausalLM",), _read, _write, llama.rules)
