"""T5, 1.0 (ReLU, head tied and scaled) and 1.1 (gated GELU, head of its own), and all that has their shape (mT5, Switch
Transformer): scores are not scaled, and get a learned bias by distance.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from athanor.base.errors import ModelError
from athanor.models.config import (
    Activation,
    AttentionConfig,
    EncoderDecoderConfig,
    HeadConfig,
    LayerConfig,
    MlpConfig,
    ModelConfig,
    NormConfig,
)
from athanor.models.families.family import Family
from athanor.models.families.keys import ACTIVATION_NAMES, Keys, activation_name
from athanor.models.families.weights import Rule, same
from athanor.models.position_config import RelativeBias


def _read(keys: Keys) -> EncoderDecoderConfig:
    return read(keys, "t5")


def read(keys: Keys, family: str, activation: Activation | None = None) -> EncoderDecoderConfig:
    """What T5's heirs share. activation: where `dense_act_fn` tells it, and not `feed_forward_proj`."""
    d_model, n_heads = keys.whole("d_model"), keys.whole("num_heads")
    kind = keys.take("feed_forward_proj", "relu")
    gated = isinstance(kind, str) and kind.startswith("gated-")
    name = "gelu_new" if kind == "gated-gelu" else str(kind).removeprefix("gated-")
    if name not in ACTIVATION_NAMES:
        raise ModelError(f"{keys.place}: feed_forward_proj = {kind!r} is not known.")
    if activation is None:
        keys.fixed(dense_act_fn=name)
    keys.fixed(is_decoder=False, add_cross_attention=False, is_gated_act=gated)
    keys.ignore("initializer_factor", "n_positions", "is_encoder_decoder")
    bias = RelativeBias(
        keys.whole("relative_attention_num_buckets", 32), keys.whole("relative_attention_max_distance", 128)
    )
    attention = AttentionConfig(n_heads, n_heads, keys.whole("d_kv", 64), bias, scale=1.0)
    mlp = MlpConfig(keys.whole("d_ff"), activation or ACTIVATION_NAMES[name], gated)
    norm = NormConfig(keys.number("layer_norm_epsilon", 1e-6))
    layer = LayerConfig(attention, mlp, norm)
    tied = keys.flag("tie_word_embeddings", True)
    encoder = ModelConfig(
        keys.whole("vocab_size"), d_model, keys.settings.get("n_positions") or 512,
        (layer,) * keys.depth("num_layers"), norm=norm, head=None, causal=False, family=family,
    )  # fmt: skip
    decoder = replace(
        encoder,
        layers=(replace(layer, cross_attention=replace(attention, position=None)),)
        * keys.depth("num_decoder_layers", encoder.n_layers),
        head=HeadConfig(tied=tied, scale=d_model**-0.5 if keys.flag("scale_decoder_outputs", tied) else 1.0),
        causal=True,
    )
    return EncoderDecoderConfig(encoder, decoder, keys.whole("decoder_start_token_id", 0), family=family)


def write(config: EncoderDecoderConfig) -> dict[str, Any]:
    layer = config.encoder.layers[0]
    attention, mlp = layer.attention, layer.mlp
    assert isinstance(attention, AttentionConfig)
    assert isinstance(attention.position, RelativeBias)
    assert isinstance(mlp, MlpConfig)
    assert config.decoder.head is not None
    activation = activation_name(mlp.activation)
    kind = f"gated-{'gelu' if mlp.activation == 'gelu_tanh' else activation}" if mlp.gated else activation
    return {
        "vocab_size": config.vocab_size,
        "d_model": config.d_model,
        "d_kv": attention.head_dim,
        "d_ff": mlp.d_ff,
        "num_layers": config.encoder.n_layers,
        "num_decoder_layers": config.decoder.n_layers,
        "num_heads": attention.n_heads,
        "n_positions": config.encoder.max_seq_len,
        "relative_attention_num_buckets": attention.position.buckets,
        "relative_attention_max_distance": attention.position.farthest,
        "layer_norm_epsilon": layer.norm.epsilon,
        "feed_forward_proj": kind,
        "tie_word_embeddings": config.decoder.head.tied,
        "scale_decoder_outputs": config.decoder.head.scale != 1,
        "decoder_start_token_id": config.start_id,
        "is_encoder_decoder": True,
    }


def rules(config: EncoderDecoderConfig, mlp: str = "DenseReluDense") -> list[Rule]:
    """mlp: what the feed-forward part is called."""
    made = [
        *same("encoder.embedding.tokens", "shared" if config.shared_embedding else "encoder.embed_tokens"),
        *same("decoder.embedding.tokens", "decoder.embed_tokens"),
        *same("head", "lm_head"),
    ]
    gated = config.encoder.layers[0].mlp.gated
    for side, last in (("encoder", 1), ("decoder", 2)):
        layer, block = f"{side}.block.*.layer", f"{side}.blocks.*"
        made += same(f"{side}.norm", f"{side}.final_layer_norm")
        made += same(f"{side}.relative_bias", f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias")
        made += same(f"{block}.attention_norms.input", f"{layer}.0.layer_norm")
        made += same(f"{block}.mlp_norms.input", f"{layer}.{last}.layer_norm")
        for ours, theirs in zip(("query", "key", "value", "output"), "qkvo", strict=True):
            made += same(f"{block}.attention.{ours}", f"{layer}.0.SelfAttention.{theirs}")
            if side == "decoder":
                made += same(f"{block}.cross_attention.{ours}", f"{layer}.1.EncDecAttention.{theirs}")
        made += same(f"{block}.mlp.gate", f"{layer}.{last}.{mlp}.wi_0")
        made += same(f"{block}.mlp.up", f"{layer}.{last}.{mlp}.{'wi_1' if gated else 'wi'}")
        made += same(f"{block}.mlp.down", f"{layer}.{last}.{mlp}.wo")
    return [*made, *same("decoder.blocks.*.cross_norms.input", "decoder.block.*.layer.1.layer_norm")]


UNUSED = (
    r"shared\.weight",
    r"(encoder|decoder)\.embed_tokens\.weight",
    r"lm_head\.weight",
    r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",
)
FAMILY = Family("t5", ("T5ForConditionalGeneration",), _read, write, rules, "", UNUSED)
