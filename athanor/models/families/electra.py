"""ELECTRA (Clark et al. 2020): BERT trained to say of each token whether it was replaced, and the small BERT that
replaces them.

Quirks: a matrix widens the embeddings, but only where `embedding_size` is not `hidden_size`; the discriminator's head
is a dense layer, the activation and one logit a token, without a norm; the generator's activation is gelu whatever
`hidden_act` says, and its last matrix is the embedding's. Only a classifier has a pooler, with gelu for BERT's tanh.
"""

from __future__ import annotations

from typing import Any

from athanor.models.config import ClassifierConfig, EmbeddingConfig, HeadConfig, MlpConfig, ModelConfig
from athanor.models.families import bert
from athanor.models.families.family import Family
from athanor.models.families.keys import Keys
from athanor.models.families.weights import Rule, same

_GENERATOR, _DISCRIMINATOR, _BARE = "ElectraForMaskedLM", "ElectraForPreTraining", "ElectraModel"
_CLASSIFIER = "ElectraForSequenceClassification"


def _read(keys: Keys) -> ModelConfig:
    layer, d_model = bert.layer_of(keys), keys.whole("hidden_size")
    length, segments = keys.whole("max_position_embeddings", 512), keys.whole("type_vocab_size", 2)
    size, tied = keys.whole("embedding_size", 128), keys.flag("tie_word_embeddings", True)
    keys.ignore("summary_type", "summary_use_proj", "summary_activation", "summary_last_dropout")
    assert isinstance(layer.mlp, MlpConfig)
    heads = {
        _GENERATOR: HeadConfig(tied=tied, bias=True, transform="gelu"),
        _DISCRIMINATOR: HeadConfig(
            tied=False, bias=True, transform=layer.mlp.activation, transform_norm=False, outputs=1
        ),
    }
    narrow = size if size != d_model else None
    return ModelConfig(
        keys.whole("vocab_size"),
        d_model,
        length,
        (layer,) * keys.depth("num_hidden_layers"),
        EmbeddingConfig(narrow, positions=length, token_types=segments, norm=layer.norm),
        norm=None,
        head=heads.get(keys.architecture),
        causal=False,
        pooler=keys.architecture == _CLASSIFIER,
        classifier=ClassifierConfig(keys.labels(), "gelu") if keys.architecture == _CLASSIFIER else None,
        family="electra",
    )


def _write(config: ModelConfig) -> dict[str, Any]:
    head, bare = config.head, _CLASSIFIER if config.classifier else _BARE
    return bert.write(config) | {
        "architectures": [bare if head is None else _DISCRIMINATOR if head.outputs else _GENERATOR],
        "embedding_size": config.embedding.size or config.d_model,
        "tie_word_embeddings": head is None or head.tied or head.outputs is not None,
    }


def _rules(config: ModelConfig) -> list[Rule]:
    discriminates = config.head is not None and config.head.outputs is not None
    head = "discriminator_predictions" if discriminates else "generator_predictions"
    return [
        *same("pooler", "classifier.dense"),
        *bert.rules("electra."),
        *same("classifier", "classifier.out_proj"),
        *same("embedding.widen", "electra.embeddings_project"),
        *same("head.dense", f"{head}.dense"),
        *same("head.norm", f"{head}.LayerNorm"),
        *same("head", "discriminator_predictions.dense_prediction" if discriminates else "generator_lm_head"),
    ]


FAMILY = Family(
    "electra", (_DISCRIMINATOR, _GENERATOR, _CLASSIFIER, _BARE), _read, _write, _rules, "electra.",
    (r".*embeddings\.position_ids", r"(generator|discriminator)_(predictions|lm_head)\..*"),
)  # fmt: skip
