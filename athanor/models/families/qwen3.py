"""Qwen3 (dense): the portable shape that Athanor trains."""

from __future__ import annotations

from typing import Any

from athanor.models.config import LayerConfig, ModelConfig
from athanor.models.families import llama
from athanor.models.families.family import Family
from athanor.models.families.keys import Keys
from athanor.models.families.windows import read_windows, write_windows


def _read(keys: Keys) -> ModelConfig:
    window = read_windows(keys)

    def change(layer: LayerConfig, number: int) -> LayerConfig:
        return llama.with_attention(layer, qk_norm="head", window=window(number))

    return llama.read(keys, "qwen3", change=change, head_dim=128, max_position_embeddings=32_768)


def _write(config: ModelConfig) -> dict[str, Any]:
    return llama.write(config) | write_windows(config)


FAMILY = Family("qwen3", ("Qwen3ForCausalLM",), _read, _write, llama.rules)
