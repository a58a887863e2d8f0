"""Usual proportions of the families that are pre-trained here beside plain decoders: BERT, ELECTRA, T5, and decoders
with experts.

Heads are 64 wide and the feed-forward part is four times as wide as the states, unless sizes say otherwise. A pair of
networks is described by one of them, from which the other follows: ELECTRA's by its discriminator, T5's by its decoder.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from athanor.base.errors import ModelError
from athanor.models.config import (
    AttentionConfig,
    EmbeddingConfig,
    EncoderDecoderConfig,
    HeadConfig,
    LatentAttentionConfig,
    LayerConfig,
    MlpConfig,
    ModelConfig,
    MoeConfig,
    NormConfig,
    standard_config,
)
from athanor.models.position_config import Position, RelativeBias, RopeConfig
from athanor.models.sizes import positive

Objective = Literal[
    "next_token", "masked", "masked_pairs", "replaced", "spans", "ul2", "prefix", "infilling", "experts", "distilled"
]
"""What can be pre-trained on, as recipes name it."""
LEARNT_POSITIONS = frozenset({"masked", "masked_pairs", "replaced"})
"""Objectives whose networks have a table with a row for each position."""
CLASSIFIABLE = LEARNT_POSITIONS | {"spans", "ul2"}
"""Objectives whose networks are fine-tuned to tell classes of texts."""
Balance = Literal["loss", "bias"]
"""How experts come to be used evenly: by an auxiliary loss, or by a bias on the choice that follows the load."""
_HEAD = 64


def config_of(objective: Objective) -> Callable[..., ModelConfig]:
    """(vocab_size, max_seq_len, **sizes) → the configuration of the network that learns it."""
    return {
        "masked": bert_config,
        "masked_pairs": paired_bert_config,
        "replaced": electra_config,
        "spans": t5_decoder,
        "ul2": t5_decoder,
        "experts": experts_config,
    }.get(objective, standard_config)


def experts_config(
    vocab_size: int,
    max_seq_len: int,
    *,
    d_model: int,
    n_layers: int,
    n_heads: int | None = None,
    n_kv_heads: int | None = None,
    head_dim: int | None = None,
    d_ff: int | None = None,
    n_experts: int = 8,
    top_k: int = 2,
    balance: Balance = "loss",
) -> ModelConfig:
    """A decoder whose feed-forward layers are `n_experts`, of which each token goes through `top_k`. d_ff: what a token
    goes through in all, as in a decoder without experts.

    For balancing by a loss it is a Qwen3-MoE; by a bias a DeepSeek-V3, whose router has one: sigmoid scores, an expert
    of the same width that sees every token, and latent attention, heads of 64 half of which carry the position.
    """
    parts = top_k + (balance == "bias")
    d_ff = d_ff or max(1, round(d_model * 8 / 3 / (64 * parts))) * 64 * parts
    if d_ff % parts:
        raise ModelError(
            f"d_ff = {d_ff} cannot be divided among the {parts} experts that a token goes through.",
            f"Choose a multiple of {parts}.",
        )
    sizes = {"n_heads": n_heads, "n_kv_heads": n_kv_heads, "head_dim": head_dim, "d_ff": d_ff}
    dense = standard_config(vocab_size, max_seq_len, d_model=d_model, n_layers=n_layers, **sizes)
    expert, norm = MlpConfig(d_ff // parts), NormConfig(1e-6)
    if balance == "loss":
        layer = replace(dense.layers[0], mlp=MoeConfig(n_experts, top_k, expert))
        return replace(dense, layers=(layer,) * n_layers, family="qwen3_moe")
    if n_kv_heads or head_dim:
        raise ModelError(
            "n_kv_heads and head_dim say nothing where experts are balanced by a bias: attention is latent there.",
            'Leave them out, or take balance = "loss".',
        )
    rope, half = RopeConfig(interleaved=True), _HEAD // 2
    attention = LatentAttentionConfig(
        n_heads or max(1, d_model // _HEAD), max(_HEAD, d_model // 2), half, half, _HEAD, rope, norm=norm
    )
    moe = MoeConfig(n_experts, top_k, expert, expert, "sigmoid", correction=True)
    layer = LayerConfig(attention, moe, norm)
    return replace(dense, layers=(layer,) * n_layers, norm=norm, family="deepseek_v3")


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


def paired_bert_config(
    vocab_size: int,
    max_seq_len: int,
    *,
    d_model: int,
    n_layers: int,
    n_heads: int | None = None,
    d_ff: int | None = None,
) -> ModelConfig:
    """BERT with its pooler and its head for the next sentence too."""
    config = bert_config(vocab_size, max_seq_len, d_model=d_model, n_layers=n_layers, n_heads=n_heads, d_ff=d_ff)
    return replace(config, pooler=True, next_sentence=True)


def electra_config(
    vocab_size: int,
    max_seq_len: int,
    *,
    d_model: int,
    n_layers: int,
    n_heads: int | None = None,
    d_ff: int | None = None,
) -> ModelConfig:
    """ELECTRA's discriminator (Clark et al. 2020): a BERT with one logit a token."""
    head = HeadConfig(tied=False, bias=True, transform="gelu", transform_norm=False, outputs=1)
    config = bert_config(vocab_size, max_seq_len, d_model=d_model, n_layers=n_layers, n_heads=n_heads, d_ff=d_ff)
    return replace(config, head=head, family="electra")


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
