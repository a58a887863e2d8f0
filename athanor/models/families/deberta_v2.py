"""DeBERTa v2 and v3 (He et al. 2021; 2023): BERT whose attention also scores words against distances and distances
against words, with projections of their own for distances (first versions) or those for words (published ones).

Quirks: scores are divided by the square root of 1, 2 or 3 times the head size, by how many kinds there are; usually
neither positions nor segments are added to the words; v2's largest have a convolution beside the first layer. A
masked-word head stands under `cls.predictions` (`legacy`) or `lm_predictions.lm_head`, and computes the same; the first
is written. Microsoft's folders name no architecture and are read as `DebertaV2Model`, which has no pooler.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from athanor.base.errors import ModelError
from athanor.models.config import (
    AttentionConfig,
    ConvolutionConfig,
    EmbeddingConfig,
    HeadConfig,
    LayerConfig,
    MlpConfig,
    ModelConfig,
)
from athanor.models.families import bert
from athanor.models.families.family import FIRST_NAMES, Family
from athanor.models.families.keys import Keys, activation_name
from athanor.models.families.weights import Rule, parameter, same
from athanor.models.position_config import Disentangled

_MASKED, _BARE = "DebertaV2ForMaskedLM", "DebertaV2Model"


def _read(keys: Keys) -> ModelConfig:
    d_model, length = keys.whole("hidden_size"), keys.whole("max_position_embeddings", 512)
    layer, segments = _layer(keys, length), keys.whole("type_vocab_size", 0)
    depth = keys.depth("num_hidden_layers")
    positions = length if keys.flag("position_biased_input", True) else 0
    size, tied = keys.whole("embedding_size", d_model), keys.flag("tie_word_embeddings", True)
    tied |= not keys.flag("legacy", True)  # the other head has no matrix but the embedding's
    if size != d_model and (positions or segments):
        raise ModelError(f"{keys.place}: embedding_size = {size} beside positions or segments.", f"Known: {d_model}.")
    keys.ignore("pooler_dropout", "pooler_hidden_act", "pooler_hidden_size", "cls_dropout")
    embedding = EmbeddingConfig(positions=positions, token_types=segments, norm=layer.norm)
    assert isinstance(layer.mlp, MlpConfig)
    return ModelConfig(
        keys.whole("vocab_size"),
        d_model,
        length,
        (replace(layer, convolution=_convolution(keys)), *(layer,) * depth)[:depth],
        embedding if size == d_model else replace(embedding, size=size, widen_bias=False, widen_first=True),
        norm=None,
        head=None if keys.architecture == _BARE else HeadConfig(tied=tied, bias=True, transform=layer.mlp.activation),
        causal=False,
        family="deberta-v2",
    )


def _layer(keys: Keys, length: int) -> LayerConfig:
    layer = bert.layer_of(keys, epsilon=1e-7)
    attention = layer.attention
    assert isinstance(attention, AttentionConfig)
    keys.fixed(attention_head_size=attention.head_dim)
    found, names = keys.take("pos_att_type", []), keys.take("norm_rel_ebd", "none")
    kinds = [kind.strip() for kind in found.lower().split("|")] if isinstance(found, str) else found
    farthest, buckets = keys.whole("max_relative_positions", -1), keys.whole("position_buckets", -1)
    shared, relative = keys.flag("share_att_key", False), keys.flag("relative_attention", False)
    if not isinstance(kinds, list) or relative != bool(kinds) or not set(map(str, kinds)) <= {"c2p", "p2c"}:
        raise ModelError(
            f"{keys.place}: relative_attention = {relative} with pos_att_type = {found!r} is not supported.",
            'Supported: true with "c2p", "p2c" or "c2p|p2c", and false without.',
        )
    if names not in ("none", "layer_norm"):
        raise ModelError(f"{keys.place}: norm_rel_ebd = {names!r} is not known.", "Known: none, layer_norm.")
    if not relative:
        return replace(layer, attention=replace(attention, position=None))
    position = Disentangled(
        farthest if farthest > 0 else length,
        buckets if buckets > 0 else None,
        "c2p" in kinds,
        "p2c" in kinds,
        shared,
        names == "layer_norm",
    )
    scale = (attention.head_dim * (1 + len(set(kinds)))) ** -0.5
    return replace(layer, attention=replace(attention, position=position, scale=scale))


def _convolution(keys: Keys) -> ConvolutionConfig | None:
    kernel, activation = keys.whole("conv_kernel_size", 0), keys.activation("conv_act", "tanh")
    groups = keys.whole("conv_groups", 1)
    return ConvolutionConfig(kernel, activation, groups) if kernel > 0 else None


def _write(config: ModelConfig) -> dict[str, Any]:
    position, convolution = config.layers[0].attention.position, config.layers[0].convolution
    written = bert.write(config) | {
        "architectures": [_BARE if config.head is None else _MASKED],
        "max_position_embeddings": config.max_seq_len,
        "position_biased_input": config.embedding.positions > 0,
        "relative_attention": isinstance(position, Disentangled),
        "legacy": True,
    }
    if config.embedding.size:
        written["embedding_size"] = config.embedding.size
    if isinstance(position, Disentangled):
        used = {"c2p": position.content_to_position, "p2c": position.position_to_content}
        written |= {
            "max_relative_positions": position.farthest,
            "position_buckets": position.buckets or -1,
            "pos_att_type": [name for name, is_used in used.items() if is_used],
            "share_att_key": position.shared,
            "norm_rel_ebd": "layer_norm" if position.normed else "none",
        }
    if convolution is not None:
        written |= {
            "conv_kernel_size": convolution.kernel,
            "conv_act": activation_name(convolution.activation),
            "conv_groups": convolution.groups,
        }
    return written


def _rules(config: ModelConfig) -> list[Rule]:
    attention, encoder = "deberta.encoder.layer.*.attention.self", "deberta.encoder"
    return [
        *same("blocks.*.attention.query", f"{attention}.query_proj"),  # before BERT's names for them
        *same("blocks.*.attention.key", f"{attention}.key_proj"),
        *same("blocks.*.attention.value", f"{attention}.value_proj"),
        *same("blocks.*.attention.disentangled.query", f"{attention}.pos_query_proj"),
        *same("blocks.*.attention.disentangled.key", f"{attention}.pos_key_proj"),
        *parameter("distances.weight", f"{encoder}.rel_embeddings.weight"),
        *same("distances.norm", f"{encoder}.LayerNorm"),
        *same("blocks.0.convolution.near", f"{encoder}.conv.conv"),
        *same("blocks.0.convolution.norm", f"{encoder}.conv.LayerNorm"),
        *parameter("embedding.widen.weight", "deberta.embeddings.embed_proj.weight"),
        *bert.rules("deberta."),
        *same("head.dense", "cls.predictions.transform.dense"),
        *same("head.norm", "cls.predictions.transform.LayerNorm"),
        *bert.decoder_rules(config, "cls.predictions"),
    ]


FAMILY = Family(
    "deberta-v2", (_MASKED, _BARE), _read, _write, _rules, "deberta.",
    (
        r".*embeddings\.position_ids", r".*embeddings\.position_embeddings\.weight",
        r"cls\.predictions\..*", r"mask_predictions\..*",  # Microsoft's folders keep the heads of pre-training
    ),
    (
        *FIRST_NAMES,
        (r"^lm_predictions\.lm_head\.(dense|LayerNorm)\.", r"cls.predictions.transform.\1."),
        (r"^lm_predictions\.lm_head\.bias$", "cls.predictions.bias"),
    ),
    unnamed=_BARE,
)  # fmt: skip
