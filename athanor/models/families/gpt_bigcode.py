"""GPT-BigCode (SantaCoder, StarCoder): GPT-2 with one key–value head for all, and matrices that stand as usual."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from athanor.models.config import AttentionConfig, ModelConfig
from athanor.models.families import gpt2, llama
from athanor.models.families.family import Family
from athanor.models.families.keys import Keys
from athanor.models.families.weights import Rule, fused, fused_by_group, same


def _read(keys: Keys) -> ModelConfig:
    one = keys.flag("multi_query", True)
    keys.ignore(
        "attention_softmax_in_fp32", "scale_attention_softmax_in_fp32", "inference_runner", "validate_runner_input"
    )
    keys.ignore(
        "pre_allocate_kv_cache", "max_sequence_length", "max_batch_size", "pad_key_length", "runner_max_sequence_length"
    )
    keys.settings.setdefault("activation_function", "gelu_pytorch_tanh")
    config = gpt2.read(keys, "gpt_bigcode")
    keys.fixed(num_key_value_heads=1 if one else keys.whole("n_head"))
    layers = (llama.with_attention(layer, n_kv_heads=1) for layer in config.layers)
    return replace(config, layers=tuple(layers)) if one else config


def _write(config: ModelConfig) -> dict[str, Any]:
    return gpt2.write(config) | {"multi_query": config.layers[0].attention.n_kv_heads == 1}


def _rules(config: ModelConfig) -> list[Rule]:
    layer, attention = "transformer.h.*", config.layers[0].attention
    assert isinstance(attention, AttentionConfig)
    parts = [f"blocks.*.attention.{name}" for name in ("query", "key", "value")]
    keys = attention.n_kv_heads * attention.head_dim
    place = f"{layer}.attn.c_attn"
    return [
        *(
            fused(parts, place, (config.d_model, keys, keys))
            if attention.n_kv_heads == 1
            else fused_by_group(parts, place, attention.n_heads, (1, 1, 1), attention.head_dim)
        ),
        *same("blocks.*.attention.output", f"{layer}.attn.c_proj"),
        *same("blocks.*.mlp.up", f"{layer}.mlp.c_fc"),
        *same("blocks.*.mlp.down", f"{layer}.mlp.c_proj"),
        *gpt2.rules(config),
    ]


FAMILY = Family(
    "gpt_bigcode", ("GPTBigCodeForCausalLM",), _read, _write, _rules, "transformer.",
    (r".*\.attn\.(masked_)?bias", r"lm_head\.weight"),
)  # fmt: skip
