"""ALBERT (Lan et al. 2019): BERT whose layers share their weights in groups, and whose tokens have narrow vectors.

Quirks: positions, segments and the first norm have the narrow size too, and a matrix widens their sum, even where both
sizes are the same; the head's norm and matrix are narrow. The two logits of the pooled token say whether two sentences
stand in their order. One layer a group is read (`inner_group_num` 1, as all published models have).
"""

from __future__ import annotations

from typing import Any

from athanor.models.config import EmbeddingConfig, HeadConfig, MlpConfig, ModelConfig
from athanor.models.families import bert
from athanor.models.families.family import Family
from athanor.models.families.keys import Keys
from athanor.models.families.weights import Rule, same

_MASKED, _BOTH, _BARE = "AlbertForMaskedLM", "AlbertForPreTraining", "AlbertModel"


def _read(keys: Keys) -> ModelConfig:
    layer, length = bert.layer_of(keys, "gelu_new"), keys.whole("max_position_embeddings", 512)
    keys.fixed(inner_group_num=1, net_structure_type=0, num_memory_blocks=0, gap_size=0)
    keys.ignore("down_scale_factor", "classifier_dropout_prob")
    segments, tied = keys.whole("type_vocab_size", 2), keys.flag("tie_word_embeddings", True)
    assert isinstance(layer.mlp, MlpConfig)
    return ModelConfig(
        keys.whole("vocab_size"),
        keys.whole("hidden_size"),
        length,
        (layer,) * keys.depth("num_hidden_layers", 12),
        EmbeddingConfig(keys.whole("embedding_size", 128), positions=length, token_types=segments, norm=layer.norm),
        norm=None,
        head=None if keys.architecture == _BARE else HeadConfig(tied=tied, bias=True, transform=layer.mlp.activation),
        causal=False,
        pooler=keys.architecture != _MASKED,
        next_sentence=keys.architecture == _BOTH,
        groups=keys.whole("num_hidden_groups", 1),
        family="albert",
    )


def _write(config: ModelConfig) -> dict[str, Any]:
    return bert.write(config) | {
        "architectures": [_BARE if config.head is None else _BOTH if config.next_sentence else _MASKED],
        "embedding_size": config.embedding.size,
        "num_hidden_groups": config.groups,
        "inner_group_num": 1,
    }


def _rules(config: ModelConfig) -> list[Rule]:
    layer, embedding = "albert.encoder.albert_layer_groups.*.albert_layers.0", "albert.embeddings"
    return [
        *same("embedding.tokens", f"{embedding}.word_embeddings"),
        *same("embedding.positions", f"{embedding}.position_embeddings"),
        *same("embedding.types", f"{embedding}.token_type_embeddings"),
        *same("embedding.norm", f"{embedding}.LayerNorm"),
        *same("embedding.widen", "albert.encoder.embedding_hidden_mapping_in"),
        *same("blocks.*.attention.query", f"{layer}.attention.query"),
        *same("blocks.*.attention.key", f"{layer}.attention.key"),
        *same("blocks.*.attention.value", f"{layer}.attention.value"),
        *same("blocks.*.attention.output", f"{layer}.attention.dense"),
        *same("blocks.*.attention_norms.sum", f"{layer}.attention.LayerNorm"),
        *same("blocks.*.mlp.up", f"{layer}.ffn"),
        *same("blocks.*.mlp.down", f"{layer}.ffn_output"),
        *same("blocks.*.mlp_norms.sum", f"{layer}.full_layer_layer_norm"),
        *same("pooler", "albert.pooler"),
        *same("head.dense", "predictions.dense"),
        *same("head.norm", "predictions.LayerNorm"),
        *bert.decoder_rules(config, "predictions"),
        *same("next_sentence", "sop_classifier.classifier"),
    ]


FAMILY = Family(
    "albert", (_MASKED, _BOTH, _BARE), _read, _write, _rules, "albert.",
    (
        r".*embeddings\.position_ids", r"predictions\.(decoder\.)?(weight|bias)",
        r"albert\.pooler\..*", r"sop_classifier\..*",  # hub folders keep them beside a masked-word head
    ),
)  # fmt: skip
