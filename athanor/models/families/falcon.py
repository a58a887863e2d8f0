"""Falcon: attention and MLP side by side; one key–value head (7B), groups of them (40B, "new_decoder_architecture"), or
ALiBi (RW). Queries, keys and values lie group by group in one matrix on disk.
"""

from __future__ import annotations

from typing import Any

from athanor.models.config import (
    AttentionConfig,
    HeadConfig,
    LayerConfig,
    MlpConfig,
    ModelConfig,
    NormConfig,
    Placement,
)
from athanor.models.families import llama
from athanor.models.families.family import Family
from athanor.models.families.keys import Keys, activation_name
from athanor.models.families.weights import Rule, fused_by_group, same
from athanor.models.position_config import Alibi, RopeConfig


def _read(keys: Keys) -> ModelConfig:
    d_model, n_heads, bias = keys.whole("hidden_size"), keys.whole("num_attention_heads"), keys.flag("bias", False)
    new, one, beside = (
        keys.flag("new_decoder_architecture", False), keys.flag("multi_query", True), keys.flag("parallel_attn", True)
    )  # fmt: skip
    norms = keys.whole("num_ln_in_parallel_attn", 2 if new else 1)
    groups = keys.whole("num_kv_heads", keys.whole("n_head_kv", n_heads))
    n_kv_heads = groups if new or not one else 1
    keys.fixed(apply_residual_connection_post_layernorm=False)
    position = Alibi(scaled=True) if keys.flag("alibi", False) else keys.rope()
    keys.ignore("rope_parameters", "rope_scaling", "rope_theta")
    attention = AttentionConfig(n_heads, n_kv_heads, d_model // n_heads, position, bias=bias, output_bias=bias)
    activation = keys.activation("activation", "gelu")
    mlp = MlpConfig(keys.whole("ffn_hidden_size", 4 * d_model), activation, gated=False, bias=bias)
    norm = NormConfig(keys.number("layer_norm_epsilon", 1e-5), "layer", bias=True)
    placement: Placement = "pre" if not beside else "parallel" if norms == 2 else "parallel_shared"
    return ModelConfig(
        keys.whole("vocab_size"),
        d_model,
        keys.whole("max_position_embeddings", 2048),
        (LayerConfig(attention, mlp, norm, placement),) * keys.depth("num_hidden_layers"),
        norm=norm,
        head=HeadConfig(tied=keys.flag("tie_word_embeddings", True)),
        family="falcon",
    )


def _write(config: ModelConfig) -> dict[str, Any]:
    layer = config.layers[0]
    attention, mlp = layer.attention, layer.mlp
    assert isinstance(attention, AttentionConfig)
    assert isinstance(mlp, MlpConfig)
    assert config.head is not None
    one = attention.n_kv_heads == 1
    new = layer.placement == "parallel" or not (one or attention.n_kv_heads == attention.n_heads)
    rope = llama.write_rope(attention.position) if isinstance(attention.position, RopeConfig) else {}
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": attention.n_heads,
        "num_kv_heads": attention.n_kv_heads,
        "new_decoder_architecture": new,
        "multi_query": one and not new,
        "parallel_attn": layer.placement != "pre",
        "num_ln_in_parallel_attn": 2 if layer.placement == "parallel" else 1,
        "alibi": isinstance(attention.position, Alibi),
        "bias": attention.bias,
        "ffn_hidden_size": mlp.d_ff,
        "activation": activation_name(mlp.activation),
        "layer_norm_epsilon": layer.norm.epsilon,
        "max_position_embeddings": config.max_seq_len,
        "tie_word_embeddings": config.head.tied,
        **rope,
    }


def _rules(config: ModelConfig) -> list[Rule]:
    layer, first = "transformer.h.*", config.layers[0]
    attention = first.attention
    assert isinstance(attention, AttentionConfig)
    parts = [f"blocks.*.attention.{name}" for name in ("query", "key", "value")]
    two = first.placement == "parallel"
    shares = (attention.n_heads // attention.n_kv_heads, 1, 1)
    place = f"{layer}.self_attention.query_key_value"
    return [
        *same("embedding.tokens", "transformer.word_embeddings"),
        *same("norm", "transformer.ln_f"),
        *same("head", "lm_head"),
        *same("blocks.*.attention_norms.input", f"{layer}.{'ln_attn' if two else 'input_layernorm'}"),
        *same("blocks.*.mlp_norms.input", f"{layer}.{'ln_mlp' if two else 'post_attention_layernorm'}"),
        *fused_by_group(parts, place, attention.n_kv_heads, shares, attention.head_dim),
        *same("blocks.*.attention.output", f"{layer}.self_attention.dense"),
        *same("blocks.*.mlp.up", f"{layer}.mlp.dense_h_to_4h"),
        *same("blocks.*.mlp.down", f"{layer}.mlp.dense_4h_to_h"),
    ]


FAMILY = Family(
    "falcon", ("FalconForCausalLM", "FalconModel"), _read, _write, _rules, "transformer.", (r"lm_head\.weight",)
)
