"""ALBERT (Lan et al. 2019): BERT whose layers share their weights in groups, and whose tokens have narrow vectors.

Quirks: positions, segments and the first norm have the narrow size too, and a matrix widens their sum, even where both
sizes are the same; the head's norm and matrix are narrow. The two logits of the pooled token say whether two sentences
stand in their order. A group may be several layers (`inner_group_num`), which follow each other wherever it stands.
"""

from __future__ import annotations

from typing import Any

from athanor.base.errors import ModelError
from athanor.models.config import EmbeddingConfig, HeadConfig, MlpConfig, ModelConfig
from athanor.models.families import bert
from athanor.models.families.family import Family
from athanor.models.families.keys import Keys
from athanor.models.families.weights import Rule, same
from athanor.models.sizes import MOST_LAYERS

_MASKED, _BOTH, _BARE = "AlbertForMaskedLM", "AlbertForPreTraining", "AlbertModel"
_SIZES = {"num_hidden_layers": 12, "num_hidden_groups": 1, "inner_group_num": 1}  # and what they are by default


def _read(keys: Keys) -> ModelConfig:
    layer, length = bert.layer_of(keys, "gelu_new"), keys.whole("max_position_embeddings", 512)
    keys.fixed(net_structure_type=0, num_memory_blocks=0, gap_size=0)
    keys.ignore("down_scale_factor", "classifier_dropout_prob")
    depth, groups, inner = (keys.depth(*named) for named in _SIZES.items())
    if not (inner and 0 < groups <= depth) or depth * inner > MOST_LAYERS:
        raise ModelError(f"{keys.place}: {depth} layers cannot share the weights of {groups} groups of {inner}.")
    if groups == depth and inner > 1:
        raise ModelError(f"{keys.place}: inner_group_num = {inner} where no layers share weights.", "Choose 1.")
    segments, tied = keys.whole("type_vocab_size", 2), keys.flag("tie_word_embeddings", True)
    assert isinstance(layer.mlp, MlpConfig)
    return ModelConfig(
        keys.whole("vocab_size"),
        keys.whole("hidden_size"),
        length,
        (layer,) * (depth * inner),
        EmbeddingConfig(keys.whole("embedding_size", 128), positions=length, token_types=segments, norm=layer.norm),
        norm=None,
        head=None if keys.architecture == _BARE else HeadConfig(tied=tied, bias=True, transform=layer.mlp.activation),
        causal=False,
        pooler=keys.architecture != _MASKED,
        next_sentence=keys.architecture == _BOTH,
        sharing=_sharing(depth, groups, inner),
        family="albert",
    )


def _sharing(depth: int, groups: int, inner: int) -> tuple[int, ...]:
    """Divided as the reference does, whose rounding, where groups are uneven, decides on the layer between two."""
    return tuple(int(i / (depth / groups)) * inner + j for i in range(depth) for j in range(inner))


def _inner(config: ModelConfig) -> int:
    """Layers in a group."""
    depth, blocks = config.n_layers, config.n_blocks
    for inner in range(1, blocks + 1):
        even = depth % inner == blocks % inner == 0
        if even and _sharing(depth // inner, blocks // inner, inner) == config.sharing:
            return inner
    raise ModelError(f"ALBERT's layers cannot share their weights as {config.sharing} says.")


def _write(config: ModelConfig) -> dict[str, Any]:
    inner = _inner(config)
    return bert.write(config) | {
        "architectures": [_BARE if config.head is None else _BOTH if config.next_sentence else _MASKED],
        "embedding_size": config.embedding.size,
        "num_hidden_layers": config.n_layers // inner,
        "num_hidden_groups": config.n_blocks // inner,
        "inner_group_num": inner,
    }


def _rules(config: ModelConfig) -> list[Rule]:
    embedding, inner = "albert.embeddings", _inner(config)
    layers: list[Rule] = []
    for number in range(config.n_blocks):
        block = f"blocks.{number}"
        layer = f"albert.encoder.albert_layer_groups.{number // inner}.albert_layers.{number % inner}"
        layers += same(f"{block}.attention.query", f"{layer}.attention.query")
        layers += same(f"{block}.attention.key", f"{layer}.attention.key")
        layers += same(f"{block}.attention.value", f"{layer}.attention.value")
        layers += same(f"{block}.attention.output", f"{layer}.attention.dense")
        layers += same(f"{block}.attention_norms.sum", f"{layer}.attention.LayerNorm")
        layers += same(f"{block}.mlp.up", f"{layer}.ffn")
        layers += same(f"{block}.mlp.down", f"{layer}.ffn_output")
        layers += same(f"{block}.mlp_norms.sum", f"{layer}.full_layer_layer_norm")
    return [
        *layers,
        *same("embedding.tokens", f"{embedding}.word_embeddings"),
        *same("embedding.positions", f"{embedding}.position_embeddings"),
        *same("embedding.types", f"{embedding}.token_type_embeddings"),
        *same("embedding.norm", f"{embedding}.LayerNorm"),
        *same("embedding.widen", "albert.encoder.embedding_hidden_mapping_in"),
        *same("pooler", "albert.pooler"),
        *same("head.dense", "predictions.dense"),
        *same("head.norm", "predictions.LayerNorm"),
        *bert.decoder_rules(config, "predictions"),
        *same("next_sentence", "sop_classifier.classifier"),
    ]


FAMILY = Family(
    "albert", (_MASKED, _BOTH, _BARE), _read, _write, _rules, "albert.",
    (
        r".*embeddings\.position_ids",  # hub folders keep heads that their architecture does not have
        r"predictions\..*", r"albert\.pooler\..*", r"sop_classifier\..*",
    ),
)  # fmt: skip
