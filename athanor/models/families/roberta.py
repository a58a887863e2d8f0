"""RoBERTa (Liu et al. 2019): BERT without the next sentence.

Quirks: positions count only tokens that are not the padding token and begin at its id + 1, so the table has that many
rows more than a text has places, and a padding token stands at row `pad_token_id` wherever it is; there is one segment,
whose vector is always added; the head's activation is gelu whatever `hidden_act` says. Folders on the hub hold a pooler
beside the masked-word head, which that model does not use.
"""

from __future__ import annotations

from typing import Any

from athanor.models.config import ClassifierConfig, EmbeddingConfig, HeadConfig, ModelConfig
from athanor.models.families import bert
from athanor.models.families.family import Family
from athanor.models.families.keys import Keys
from athanor.models.families.weights import Rule, same


def family(name: str, masked: str, bare: str, classifier: str) -> Family:
    """RoBERTa under another name. masked, bare, classifier: its architectures."""

    def read(keys: Keys) -> ModelConfig:
        layer, rows = bert.layer_of(keys), keys.whole("max_position_embeddings", 512)
        padding, segments = keys.whole("pad_token_id", 1), keys.whole("type_vocab_size", 2)
        tied, is_bare = keys.flag("tie_word_embeddings", True), keys.architecture == bare
        classifies = keys.architecture == classifier
        return ModelConfig(
            keys.whole("vocab_size"),
            keys.whole("hidden_size"),
            rows - padding - 1,
            (layer,) * keys.depth("num_hidden_layers"),
            EmbeddingConfig(
                positions=rows, position_offset=padding + 1, padding_id=padding, token_types=segments, norm=layer.norm
            ),
            norm=None,
            head=None if is_bare or classifies else HeadConfig(tied=tied, bias=True, transform="gelu"),
            causal=False,
            pooler=is_bare or classifies,
            classifier=ClassifierConfig(keys.labels()) if classifies else None,
            family=name,
        )

    def write(config: ModelConfig) -> dict[str, Any]:
        return bert.write(config) | {
            "architectures": [classifier if config.classifier else bare if config.head is None else masked],
            "pad_token_id": config.embedding.padding_id,
        }

    return Family(
        name, (masked, classifier, bare), read, write, _rules, "roberta.",
        (r".*embeddings\.position_ids", r"lm_head\..*", r"roberta\.pooler\..*"),
    )  # fmt: skip


def _rules(config: ModelConfig) -> list[Rule]:
    return [
        *(same("pooler", "classifier.dense") if config.classifier else ()),
        *bert.rules("roberta."),
        *same("classifier", "classifier.out_proj"),
        *same("head.dense", "lm_head.dense"),
        *same("head.norm", "lm_head.layer_norm"),
        *bert.decoder_rules(config, "lm_head"),
    ]


FAMILY = family("roberta", "RobertaForMaskedLM", "RobertaModel", "RobertaForSequenceClassification")
