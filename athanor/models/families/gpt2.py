"""GPT-2: learned positions, layer norms with bias, an MLP without a gate. Its matrices stand transposed on disk
(Conv1D), queries, keys and values in one.
"""

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
from athanor.models.families.keys import Keys, activation_name
from athanor.models.families.weights import Rule, fused, same, transposed


def read(keys: Keys, family: str) -> ModelConfig:
    d_model, n_heads, length = keys.whole("n_embd"), keys.whole("n_head"), keys.whole("n_positions", 1024)
    keys.ignore("n_ctx", "summary_type", "summary_use_proj", "summary_activation", "summary_first_dropout")
    keys.ignore("summary_proj_to_labels", "reorder_and_upcast_attn")
    keys.fixed(scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False, add_cross_attention=False)
    norm = NormConfig(keys.number("layer_norm_epsilon", 1e-5), "layer", bias=True)
    attention = AttentionConfig(n_heads, n_heads, d_model // n_heads, None, bias=True, output_bias=True)
    activation = keys.activation("activation_function", "gelu_new")
    mlp = MlpConfig(keys.whole("n_inner", 4 * d_model), activation, gated=False, bias=True)
    return ModelConfig(
        keys.whole("vocab_size"),
        d_model,
        length,
        (LayerConfig(attention, mlp, norm),) * keys.depth("n_layer"),
        EmbeddingConfig(positions=length),
        norm,
        HeadConfig(tied=keys.flag("tie_word_embeddings", True)),
        family=family,
    )


def write(config: ModelConfig) -> dict[str, Any]:
    layer = config.layers[0]
    assert isinstance(layer.mlp, MlpConfig)
    assert config.head is not None
    return {
        "vocab_size": config.vocab_size,
        "n_embd": config.d_model,
        "n_head": layer.attention.n_heads,
        "n_layer": config.n_layers,
        "n_positions": config.max_seq_len,
        "n_inner": layer.mlp.d_ff,
        "activation_function": activation_name(layer.mlp.activation),
        "layer_norm_epsilon": layer.norm.epsilon,
        "tie_word_embeddings": config.head.tied,
    }


def rules(config: ModelConfig) -> list[Rule]:
    layer, d = "transformer.h.*", config.d_model
    parts = [f"blocks.*.attention.{name}" for name in ("query", "key", "value")]
    return [
        *same("embedding.tokens", "transformer.wte"),
        *same("embedding.positions", "transformer.wpe"),
        *same("norm", "transformer.ln_f"),
        *same("head", "lm_head"),
        *same("blocks.*.attention_norms.input", f"{layer}.ln_1"),
        *same("blocks.*.mlp_norms.input", f"{layer}.ln_2"),
        *fused(parts, f"{layer}.attn.c_attn", (d, d, d), transpose=True),
        *transposed("blocks.*.attention.output", f"{layer}.attn.c_proj"),
        *transposed("blocks.*.mlp.up", f"{layer}.mlp.c_fc"),
        *transposed("blocks.*.mlp.down", f"{layer}.mlp.c_proj"),
    ]


def _read(keys: Keys) -> ModelConfig:
    return read(keys, "gpt2")


FAMILY = Family(
    "gpt2", ("GPT2LMHeadModel", "GPT2Model"), _read, write, rules, "transformer.",
    (r".*\.attn\.(masked_)?bias", r"lm_head\.weight"),
)  # fmt: skip
