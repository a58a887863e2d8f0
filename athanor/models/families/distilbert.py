"""DistilBERT (Sanh et al. 2019): half of BERT's layers, without segments and pooler.

Quirks: keys and weights have names of their own; norms have an epsilon of 1e-12 that no key tells; positions are a
table on disk even where they are sines and cosines (`sinusoidal_pos_embds`).
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
from athanor.models.families.weights import Rule, same

_MASKED, _BARE = "DistilBertForMaskedLM", "DistilBertModel"


def _read(keys: Keys) -> ModelConfig:
    d_model, n_heads = keys.whole("dim", 768), keys.whole("n_heads", 12)
    length, activation = keys.whole("max_position_embeddings", 512), keys.activation("activation", "gelu")
    tied, norm = keys.flag("tie_word_embeddings", True), NormConfig(1e-12, "layer", bias=True)
    keys.ignore("sinusoidal_pos_embds", "qa_dropout", "seq_classif_dropout", "tie_weights_")
    layer = LayerConfig(
        AttentionConfig(n_heads, n_heads, d_model // n_heads, None, bias=True, output_bias=True),
        MlpConfig(keys.whole("hidden_dim", 3072), activation, gated=False, bias=True),
        norm,
        "post",
    )
    return ModelConfig(
        keys.whole("vocab_size", 30_522),
        d_model,
        length,
        (layer,) * keys.depth("n_layers", 6),
        EmbeddingConfig(positions=length, norm=norm),
        norm=None,
        head=None if keys.architecture == _BARE else HeadConfig(tied=tied, bias=True, transform=activation),
        causal=False,
        family="distilbert",
    )


def _write(config: ModelConfig) -> dict[str, Any]:
    layer = config.layers[0]
    assert isinstance(layer.mlp, MlpConfig)
    return {
        "architectures": [_BARE if config.head is None else _MASKED],
        "vocab_size": config.vocab_size,
        "dim": config.d_model,
        "n_layers": config.n_layers,
        "n_heads": layer.attention.n_heads,
        "hidden_dim": layer.mlp.d_ff,
        "activation": activation_name(layer.mlp.activation),
        "max_position_embeddings": config.embedding.positions,
        "tie_word_embeddings": config.head is None or config.head.tied,
    }


def _rules(config: ModelConfig) -> list[Rule]:
    layer, embedding = "distilbert.transformer.layer.*", "distilbert.embeddings"
    return [
        *same("embedding.tokens", f"{embedding}.word_embeddings"),
        *same("embedding.positions", f"{embedding}.position_embeddings"),
        *same("embedding.norm", f"{embedding}.LayerNorm"),
        *same("blocks.*.attention.query", f"{layer}.attention.q_lin"),
        *same("blocks.*.attention.key", f"{layer}.attention.k_lin"),
        *same("blocks.*.attention.value", f"{layer}.attention.v_lin"),
        *same("blocks.*.attention.output", f"{layer}.attention.out_lin"),
        *same("blocks.*.attention_norms.sum", f"{layer}.sa_layer_norm"),
        *same("blocks.*.mlp.up", f"{layer}.ffn.lin1"),
        *same("blocks.*.mlp.down", f"{layer}.ffn.lin2"),
        *same("blocks.*.mlp_norms.sum", f"{layer}.output_layer_norm"),
        *same("head.dense", "vocab_transform"),
        *same("head.norm", "vocab_layer_norm"),
        *same("head", "vocab_projector"),
    ]


FAMILY = Family(
    "distilbert", (_MASKED, _BARE), _read, _write, _rules, "distilbert.",
    (r".*embeddings\.position_ids", r"vocab_(transform|layer_norm|projector)\..*"),
)  # fmt: skip
