"""Usual proportions of the families that are pre-trained here beside decoders: BERT, ELECTRA, T5.

Heads are 64 wide and the feed-forward part is four times as wide as the states, unless sizes say otherwise. A pair of
networks is described by one of them, from which the other follows: ELECTRA's by its discriminator, T5's by its decoder.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal, Required, TypedDict, Unpack

from athanor.base.errors import ModelError
from athanor.models.config import (
    AttentionConfig,
    EmbeddingConfig,
    EncoderDecoderConfig,
    HeadConfig,
    LayerConfig,
    MlpConfig,
    ModelConfig,
    NormConfig,
    standard_config,
)
from athanor.models.position_config import Position, RelativeBias
from athanor.models.sizes import positive

Objective = Literal["next_token", "masked", "masked_pairs", "replaced", "spans", "ul2", "prefix", "infilling"]
"""What can be pre-trained on, as recipes name it."""
LEARNT_POSITIONS = frozenset({"masked", "masked_pairs", "replaced"})
"""Objectives whose networks have a table with a row for each position."""
_HEAD = 64


class Sizes(TypedDict, total=False):
    """n_heads: by default as many as 64 wide ones. d_ff: by default four times d_model."""

    d_model: Required[int]
    n_layers: Required[int]
    n_heads: int | None
    d_ff: int | None


def config_of(objective: Objective) -> Callable[..., ModelConfig]:
    """(vocab_size, max_seq_len, **sizes) → the configuration of the network that learns it."""
    return {
        "masked": bert_config,
        "masked_pairs": paired_bert_config,
        "replaced": electra_config,
        "spans": t5_decoder,
        "ul2": t5_decoder,
    }.get(objective, standard_config)


def bert_config(
    vocab_size: int,
    max_seq_len: int,
    *,
    d_model: int,
    n_layers: int,
    n_heads: int | None = None,
    d_ff: int | None = None,
) -> ModelConfig:
    """BERT (Devlin et al. 2019) with its head for hidden tokens."""
    norm = NormConfig(1e-12, "layer", True)
    attention = _attention(d_model, n_heads, None, bias=True)
    layer = LayerConfig(attention, MlpConfig(d_ff or 4 * d_model, "gelu", False, True), norm, "post")
    positive("n_layers", n_layers)
    return ModelConfig(
        vocab_size,
        d_model,
        max_seq_len,
        (layer,) * n_layers,
        EmbeddingConfig(positions=max_seq_len, token_types=2, norm=norm),
        norm=None,
        head=HeadConfig(bias=True, transform="gelu"),
        causal=False,
        family="bert",
    )


def paired_bert_config(vocab_size: int, max_seq_len: int, **sizes: Unpack[Sizes]) -> ModelConfig:
    """BERT with its pooler and its head for the next sentence too."""
    return replace(bert_config(vocab_size, max_seq_len, **sizes), pooler=True, next_sentence=True)


def electra_config(vocab_size: int, max_seq_len: int, **sizes: Unpack[Sizes]) -> ModelConfig:
    """ELECTRA's discriminator (Clark et al. 2020): a BERT with one logit a token."""
    head = HeadConfig(tied=False, bias=True, transform="gelu", transform_norm=False, outputs=1)
    return replace(bert_config(vocab_size, max_seq_len, **sizes), head=head, family="electra")


def electra_generator(discriminator: ModelConfig) -> ModelConfig:
    """What fills the places that the discriminator judges. Deviation: it has half the layers, each as wide, where the
    paper's has a quarter to a half of the width.
    """
    layers = discriminator.layers[: max(1, discriminator.n_layers // 2)]
    return replace(discriminator, layers=layers, head=HeadConfig(bias=True, transform="gelu"))


def t5_decoder(
    vocab_size: int,
    max_seq_len: int,
    *,
    d_model: int,
    n_layers: int,
    n_heads: int | None = None,
    d_ff: int | None = None,
) -> ModelConfig:
    """The decoder of a T5 (Raffel et al. 2020), which reads an encoder of as many layers."""
    attention = _attention(d_model, n_heads, RelativeBias())
    reading = replace(attention, position=None)
    layer = LayerConfig(attention, MlpConfig(d_ff or 4 * d_model, "relu", False), cross_attention=reading)
    positive("n_layers", n_layers)
    return ModelConfig(vocab_size, d_model, max_seq_len, (layer,) * n_layers, head=HeadConfig(scale=d_model**-0.5))


def t5_config(decoder: ModelConfig, start_id: int) -> EncoderDecoderConfig:
    """The T5 that a decoder belongs to. start_id: what a target begins with."""
    layers = tuple(replace(layer, cross_attention=None) for layer in decoder.layers)
    return EncoderDecoderConfig(replace(decoder, layers=layers, head=None, causal=False), decoder, start_id)


def _attention(d_model: int, n_heads: int | None, position: Position, *, bias: bool = False) -> AttentionConfig:
    positive("d_model", d_model)
    heads = n_heads or max(1, d_model // _HEAD)
    if d_model % heads:
        raise ModelError(f"d_model = {d_model} is not a multiple of n_heads = {heads}.", "Choose a divisor of it.")
    if position is None:
        return AttentionConfig(heads, heads, d_model // heads, None, bias=bias, output_bias=bias)
    return AttentionConfig(heads, heads, d_model // heads, position, scale=1.0)
