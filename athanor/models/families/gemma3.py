"""Gemma 3 (text): Gemma 2 with normed queries and keys instead of bent scores, five windowed layers to one full, and
rotary positions of their own for each of the two kinds.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from athanor.models.config import LayerConfig, ModelConfig
from athanor.models.families import gemma, gemma2, llama
from athanor.models.families.family import Family
from athanor.models.families.keys import Keys
from athanor.models.families.windows import read_kinds, write_ropes
from athanor.models.position_config import RopeConfig


def _read(keys: Keys) -> ModelConfig:
    norm = gemma.gemma_norm(keys)
    keys.fixed(use_bidirectional_attention=False, attn_logit_softcapping=None)
    keys.settings["hidden_act"] = keys.take("hidden_activation", "gelu_pytorch_tanh")
    scale, final = keys.number("query_pre_attn_scalar", 256) ** -0.5, keys.take("final_logit_softcapping")
    every = keys.whole("_sliding_window_pattern", keys.whole("sliding_window_pattern", 6))
    window, windowed = keys.whole("sliding_window", 4096), read_kinds(keys, lambda i: (i + 1) % every != 0)
    far = keys.rope(1e6, nested="full_attention", length=131_072)
    parameters = keys.take("rope_parameters")
    nested = isinstance(parameters, dict) and isinstance(parameters.get("sliding_attention"), dict)
    near = (
        keys.rope(1e4, nested="sliding_attention") if nested else RopeConfig(keys.number("rope_local_base_freq", 1e4))
    )
    keys.ignore("rope_local_base_freq", "cache_implementation")

    def change(layer: LayerConfig, number: int) -> LayerConfig:
        local = windowed(number)
        return llama.with_attention(
            replace(layer, norm=norm, placement="sandwich"), qk_norm="head", scale=scale,
            window=window if local else None,
            position=near if local else far,
        )  # fmt: skip

    config = llama.read(
        keys, "gemma3_text", change=change, rope=far, head_dim=256, tie_word_embeddings=True,
        max_position_embeddings=131_072,
    )  # fmt: skip
    assert config.head is not None
    return replace(gemma.finish(config, norm), head=replace(config.head, soft_cap=final))


def _write(config: ModelConfig) -> dict[str, Any]:
    written = gemma2.write(config) | write_ropes(config)
    del written["rope_theta"]
    return written


FAMILY = Family("gemma3_text", ("Gemma3ForCausalLM",), _read, _write, gemma2.rules)
