"""BLOOM: ALiBi instead of positions, and a norm of the embeddings; queries, keys and values of a head lie together."""

from __future__ import annotations

from typing import Any

from athanor.models.config import (
    AttentionConfig,
    EmbeddingConfig,
    HeadConfig,
    LayerConfig,
    MlpConfig,
    ModelConfig,
    NormConfig,
)
from athanor.models.families.family import Family
from athanor.models.families.keys import Keys
from athanor.models.families.weights import Rule, fused_by_group, same
from athanor.models.position_config import Alibi


def _read(keys: Keys) -> ModelConfig:
    d_model = keys.settings.get("hidden_size") or keys.whole("n_embed")
    n_heads = keys.settings.get("n_head") or keys.whole("num_attention_heads")
    n_layers = keys.depth("n_layer" if keys.settings.get("n_layer") else "num_hidden_layers")
    keys.ignore("hidden_size", "n_embed", "n_head", "num_attention_heads", "n_layer", "num_hidden_layers", "seq_length")
    keys.ignore(
        "slow_but_exact", "skip_bias_add", "skip_bias_add_qkv", "attention_softmax_in_fp32", "bias_dropout_fusion"
    )
    keys.ignore("masked_softmax_fusion", "offset_alibi", "unk_token_id")
    keys.fixed(apply_residual_connection_post_layernorm=False)
    norm = NormConfig(keys.number("layer_norm_epsilon", 1e-5), "layer", bias=True)
    attention = AttentionConfig(n_heads, n_heads, d_model // n_heads, Alibi(), bias=True, output_bias=True)
    mlp = MlpConfig(4 * d_model, "gelu_tanh", gated=False, bias=True)
    return ModelConfig(
        keys.whole("vocab_size"),
        d_model,
        keys.settings.get("seq_length") or 2048,
        (LayerConfig(attention, mlp, norm),) * n_layers,
        EmbeddingConfig(norm=norm),
        norm,
        HeadConfig(tied=keys.flag("tie_word_embeddings", True)),
        family="bloom",
    )


def _write(config: ModelConfig) -> dict[str, Any]:
    assert config.head is not None
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "n_head": config.layers[0].attention.n_heads,
        "n_layer": config.n_layers,
        "layer_norm_epsilon": config.layers[0].norm.epsilon,
        "seq_length": config.max_seq_len,
        "apply_residual_connection_post_layernorm": False,
        "tie_word_embeddings": config.head.tied,
    }


def _rules(config: ModelConfig) -> list[Rule]:
    layer, attention = "transformer.h.*", config.layers[0].attention
    assert isinstance(attention, AttentionConfig)
    parts = [f"blocks.*.attention.{name}" for name in ("query", "key", "value")]
    place, dim = f"{layer}.self_attention.query_key_value", attention.head_dim
    return [
        *same("embedding.tokens", "transformer.word_embeddings"),
        *same("embedding.norm", "transformer.word_embeddings_layernorm"),
        *same("norm", "transformer.ln_f"),
        *same("head", "lm_head"),
        *same("blocks.*.attention_norms.input", f"{layer}.input_layernorm"),
        *same("blocks.*.mlp_norms.input", f"{layer}.post_attention_layernorm"),
        *fused_by_group(parts, place, attention.n_heads, (1, 1, 1), dim),
        *same("blocks.*.attention.output", f"{layer}.self_attention.dense"),
        *same("blocks.*.mlp.up", f"{layer}.mlp.dense_h_to_4h"),
        *same("blocks.*.mlp.down", f"{layer}.mlp.dense_4h_to_h"),
    ]


FAMILY = Family(
    "bloom", ("BloomForCausalLM", "BloomModel"), _read, _write, _rules, "transformer.", (r"lm_head\.weight",)
)
