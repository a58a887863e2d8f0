"""Gemma 1: Llama with embeddings scaled by √d_model, gains stored as their distance from one, and GeGLU."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from athanor.models.config import EmbeddingConfig, LayerConfig, ModelConfig, NormConfig
from athanor.models.families import llama
from athanor.models.families.family import Family
from athanor.models.families.keys import Keys


def gemma_norm(keys: Keys) -> NormConfig:
    return NormConfig(keys.number("rms_norm_eps", 1e-6), offset=1.0)


def finish(config: ModelConfig, norm: NormConfig) -> ModelConfig:
    """What all Gemmas have around their layers."""
    return replace(config, embedding=EmbeddingConfig(scale=config.d_model**0.5), norm=norm)


def _read(keys: Keys) -> ModelConfig:
    norm = gemma_norm(keys)
    keys.fixed(use_bidirectional_attention=False)
    if keys.take("hidden_activation") or keys.take("hidden_act") in (None, "gelu"):
        keys.settings["hidden_act"] = keys.take(
            "hidden_activation", "gelu_pytorch_tanh"
        )  # early files say gelu and mean tanh

    def change(layer: LayerConfig, number: int) -> LayerConfig:
        return replace(layer, norm=norm)

    config = llama.read(
        keys, "gemma", change=change, head_dim=256, tie_word_embeddings=True, max_position_embeddings=8192
    )
    return finish(config, norm)


def _write(config: ModelConfig) -> dict[str, Any]:
    written = llama.write(config)
    return {**written, "hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh"}


FAMILY = Family("gemma", ("GemmaForCausalLM",), _read, _write, llama.rules)
