"""BERT: post-norms, learned positions and segments; with its heads for masked words, for the next sentence, and for
classes of texts.
"""

from __future__ import annotations

from typing import Any

from athanor.models.config import (
    AttentionConfig,
    ClassifierConfig,
    EmbeddingConfig,
    HeadConfig,
    LayerConfig,
    MlpConfig,
    ModelConfig,
    NormConfig,
)
from athanor.models.families.family import Family
from athanor.models.families.keys import Keys, activation_name
from athanor.models.families.weights import Rule, parameter, same

_MASKED, _BOTH, _BARE = "BertForMaskedLM", "BertForPreTraining", "BertModel"
_CLASSIFIER = "BertForSequenceClassification"


def layer_of(keys: Keys, activation: str = "gelu", epsilon: float = 1e-12) -> LayerConfig:
    """A layer as BERT and its heirs write it. activation, epsilon: the family's usual ones."""
    d_model, n_heads = keys.whole("hidden_size"), keys.whole("num_attention_heads")
    keys.fixed(position_embedding_type="absolute", is_decoder=False, add_cross_attention=False)
    keys.fixed(directionality="bidi", pooler_type="first_token_transform")  # google's chinese and multilingual files
    keys.ignore("pooler_fc_size", "pooler_num_attention_heads", "pooler_num_fc_layers", "pooler_size_per_head")
    return LayerConfig(
        AttentionConfig(n_heads, n_heads, d_model // n_heads, None, bias=True, output_bias=True),
        MlpConfig(keys.whole("intermediate_size"), keys.activation("hidden_act", activation), gated=False, bias=True),
        NormConfig(keys.number("layer_norm_eps", epsilon), "layer", bias=True),
        "post",
    )


def _read(keys: Keys) -> ModelConfig:
    layer, length = layer_of(keys), keys.whole("max_position_embeddings", 512)
    tied, headed = keys.flag("tie_word_embeddings", True), keys.architecture in (_MASKED, _BOTH)
    assert isinstance(layer.mlp, MlpConfig)
    return ModelConfig(
        keys.whole("vocab_size"),
        keys.whole("hidden_size"),
        length,
        (layer,) * keys.depth("num_hidden_layers"),
        EmbeddingConfig(positions=length, token_types=keys.whole("type_vocab_size", 2), norm=layer.norm),
        norm=None,
        head=HeadConfig(tied=tied, bias=True, transform=layer.mlp.activation) if headed else None,
        causal=False,
        pooler=keys.architecture != _MASKED,
        next_sentence=keys.architecture == _BOTH,
        classifier=ClassifierConfig(keys.labels()) if keys.architecture == _CLASSIFIER else None,
        family="bert",
    )


def write(config: ModelConfig) -> dict[str, Any]:
    """The keys that BERT's heirs share."""
    layer = config.layers[0]
    assert isinstance(layer.mlp, MlpConfig)
    return labelled(config) | {
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": layer.attention.n_heads,
        "intermediate_size": layer.mlp.d_ff,
        "hidden_act": activation_name(layer.mlp.activation),
        "max_position_embeddings": config.embedding.positions,
        "type_vocab_size": config.embedding.token_types,
        "layer_norm_eps": layer.norm.epsilon,
        "tie_word_embeddings": config.head is None or config.head.tied,
    }


def labelled(config: ModelConfig) -> dict[str, Any]:
    """The keys that name a classifier's classes; none for another model."""
    if config.classifier is None:
        return {}
    labels = config.classifier.labels
    return {
        "id2label": {str(number): label for number, label in enumerate(labels)},
        "label2id": {label: number for number, label in enumerate(labels)},
    }


def _write(config: ModelConfig) -> dict[str, Any]:
    if config.classifier is not None:
        return write(config) | {"architectures": [_CLASSIFIER]}
    architecture = _BARE if config.head is None else _BOTH if config.next_sentence else _MASKED
    return write(config) | {"architectures": [architecture]}


def rules(prefix: str) -> list[Rule]:
    """The names of BERT's heirs but for their heads."""
    layer, embedding = f"{prefix}encoder.layer.*", f"{prefix}embeddings"
    return [
        *same("embedding.tokens", f"{embedding}.word_embeddings"),
        *same("embedding.positions", f"{embedding}.position_embeddings"),
        *same("embedding.types", f"{embedding}.token_type_embeddings"),
        *same("embedding.norm", f"{embedding}.LayerNorm"),
        *same("blocks.*.attention.query", f"{layer}.attention.self.query"),
        *same("blocks.*.attention.key", f"{layer}.attention.self.key"),
        *same("blocks.*.attention.value", f"{layer}.attention.self.value"),
        *same("blocks.*.attention.output", f"{layer}.attention.output.dense"),
        *same("blocks.*.attention_norms.sum", f"{layer}.attention.output.LayerNorm"),
        *same("blocks.*.mlp.up", f"{layer}.intermediate.dense"),
        *same("blocks.*.mlp.down", f"{layer}.output.dense"),
        *same("blocks.*.mlp_norms.sum", f"{layer}.output.LayerNorm"),
        *same("pooler", f"{prefix}pooler.dense"),
    ]


def decoder_rules(config: ModelConfig, head: str) -> list[Rule]:
    """Of the last matrix and its bias, which has a name of its own where the matrix is the embedding's."""
    if config.head is None or config.head.tied:
        return parameter("head.bias", f"{head}.bias")
    return [*parameter("head.weight", f"{head}.decoder.weight"), *parameter("head.bias", f"{head}.decoder.bias")]


def _rules(config: ModelConfig) -> list[Rule]:
    head = "cls.predictions"
    return [
        *rules("bert."),
        *same("head.dense", f"{head}.transform.dense"),
        *same("head.norm", f"{head}.transform.LayerNorm"),
        *decoder_rules(config, head),
        *same("next_sentence", "cls.seq_relationship"),
        *same("classifier", "classifier"),
    ]


FAMILY = Family(
    "bert", (_MASKED, _BOTH, _CLASSIFIER, _BARE), _read, _write, _rules, "bert.",
    (
        r".*embeddings\.position_ids",
        r"cls\..*", r"bert\.pooler\..*",  # hub folders keep heads that their architecture does not have
    ),
)  # fmt: skip
