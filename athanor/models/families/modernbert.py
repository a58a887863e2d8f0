"""ModernBERT (Warner et al. 2024): an encoder with rotary positions, pre-norms and gated feed-forward parts, most of
whose layers see only a window.

Quirks: the first layer's attention has no norm, because the embedding's stands right before it; every third layer sees
the whole text and turns with a theta of its own, the others see `local_attention` // 2 tokens to either side; queries,
keys and values are one matrix on disk, gate and up (in this order) another; the head's norm is the model's, and its
dense layer and its last one have biases of their own choice (`classifier_bias`, `decoder_bias`). There are no segments
and no pooler. Older folders write one theta a kind of layer (`global_rope_theta`, `local_rope_theta`) and
`global_attn_every_n_layers`; what is written here has `rope_parameters` and `layer_types` as well.
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
from athanor.models.families.weights import Rule, fused, same
from athanor.models.families.windows import layer_kinds, read_kinds, write_ropes

_MASKED, _BARE = "ModernBertForMaskedLM", "ModernBertModel"
_THETAS = {"full_attention": ("global_rope_theta", 160_000.0), "sliding_attention": ("local_rope_theta", 10_000.0)}


def _read(keys: Keys) -> ModelConfig:
    d_model, n_heads = keys.whole("hidden_size", 768), keys.whole("num_attention_heads", 12)
    bias, mlp_bias = keys.flag("attention_bias", False), keys.flag("mlp_bias", False)
    norm = NormConfig(keys.number("norm_eps", 1e-5), "layer", keys.flag("norm_bias", False))
    activation = keys.activation("hidden_activation", "gelu")
    mlp = MlpConfig(keys.whole("intermediate_size", 1152), activation, gated=True, bias=mlp_bias)
    every, window = keys.whole("global_attn_every_n_layers", 3), keys.whole("local_attention", 128)
    windowed = read_kinds(keys, lambda number: number % every != 0)
    far, near = (keys.rope(keys.number(*theta), nested=kind, length=8192) for kind, theta in _THETAS.items())
    head = HeadConfig(
        tied=keys.flag("tie_word_embeddings", True),
        bias=keys.flag("decoder_bias", True),
        transform=keys.activation("classifier_activation", "gelu"),
        transform_bias=keys.flag("classifier_bias", False),
    )
    keys.ignore(
        "initializer_cutoff_factor", "embedding_dropout", "mlp_dropout", "classifier_pooling", "reference_compile",
        "deterministic_flash_attn", "sparse_prediction", "sparse_pred_ignore_index", "repad_logits_with_grad",
        "layer_norm_eps", "position_embedding_type",
    )  # fmt: skip

    def layer(number: int) -> LayerConfig:
        position, reach = (near, window) if windowed(number) else (far, None)
        attention = AttentionConfig(
            n_heads, n_heads, d_model // n_heads, position, bias=bias, output_bias=bias, window=reach
        )
        return LayerConfig(attention, mlp, norm, attention_norm=number > 0)

    return ModelConfig(
        keys.whole("vocab_size", 50_368),
        d_model,
        keys.whole("max_position_embeddings", 8192),
        tuple(layer(number) for number in range(keys.depth("num_hidden_layers"))),
        EmbeddingConfig(norm=norm),
        norm,
        head=None if keys.architecture == _BARE else head,
        causal=False,
        family="modernbert",
    )


def _write(config: ModelConfig) -> dict[str, Any]:
    layer = config.layers[0]
    attention, mlp, head = layer.attention, layer.mlp, config.head or HeadConfig(transform="gelu")
    assert isinstance(attention, AttentionConfig)
    assert isinstance(mlp, MlpConfig)
    ropes = write_ropes(config)
    return {
        "architectures": [_BARE if config.head is None else _MASKED],
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "intermediate_size": mlp.d_ff,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": attention.n_heads,
        "hidden_activation": activation_name(mlp.activation),
        "max_position_embeddings": config.max_seq_len,
        "norm_eps": layer.norm.epsilon,
        "norm_bias": layer.norm.bias,
        "attention_bias": attention.bias,
        "mlp_bias": mlp.bias,
        "local_attention": next((one.attention.window for one in config.layers if one.attention.window), 128),
        "layer_types": layer_kinds(config),
        **ropes,
        **{
            key: ropes["rope_parameters"][kind]["rope_theta"]
            for kind, (key, _) in _THETAS.items()
            if kind in ropes["rope_parameters"]
        },
        "decoder_bias": head.bias,
        "classifier_bias": head.transform_bias,
        "classifier_activation": activation_name(head.transform or "gelu"),
        "tie_word_embeddings": head.tied,
    }


def _rules(config: ModelConfig) -> list[Rule]:
    first, layer = config.layers[0], "model.layers.*"
    assert isinstance(first.mlp, MlpConfig)
    parts = ["blocks.*.attention.query", "blocks.*.attention.key", "blocks.*.attention.value"]
    return [
        *same("embedding.tokens", "model.embeddings.tok_embeddings"),
        *same("embedding.norm", "model.embeddings.norm"),
        *same("norm", "model.final_norm"),
        *same("blocks.*.attention_norms.input", f"{layer}.attn_norm"),
        *same("blocks.*.mlp_norms.input", f"{layer}.mlp_norm"),
        *fused(parts, f"{layer}.attn.Wqkv", [config.d_model] * 3),
        *same("blocks.*.attention.output", f"{layer}.attn.Wo"),
        *fused(["blocks.*.mlp.gate", "blocks.*.mlp.up"], f"{layer}.mlp.Wi", [first.mlp.d_ff] * 2),
        *same("blocks.*.mlp.down", f"{layer}.mlp.Wo"),
        *same("head.dense", "head.dense"),
        *same("head.norm", "head.norm"),
        *same("head", "decoder"),
    ]


FAMILY = Family(
    "modernbert",
    (_MASKED, _BARE),
    _read,
    _write,
    _rules,
    "model.",
    (r".*rotary_emb\..*inv_freq", r"(head|decoder)\..*"),
)
