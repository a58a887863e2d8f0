"""Qwen2 and 2.5: Llama with biases of queries, keys and values, and windows in the later layers if switched on."""

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
        return llama.with_attention(layer, bias=True, output_bias=False, window=window(number))

    return llama.read(keys, "qwen2", change=change, max_position_embeddings=32_768)


def _write(config: ModelConfig) -> dict[str, Any]:
    written = llama.write(config) | write_windows(config)
    del written["attention_bias"], written["head_dim"]
    return written


FAMILY = Family("qwen2", ("Qwen2ForCausalLM",), _read, _write, llama.rules)
