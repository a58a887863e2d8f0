"""BART (Lewis et al. 2020): the original Transformer with learned positions and a norm of the embeddings; and what
its relatives share with it (Marian, M2M-100).

Quirks: the table of positions begins with two rows that nothing uses; logits get a bias that is stored as a buffer of
one row, and that the bare `BartModel`, as which facebook/bart-base and -large are published, lacks. A head that is not
tied leaves each side a table of tokens of its own.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from athanor.models.config import (
    AttentionConfig,
    EmbeddingConfig,
    EncoderDecoderConfig,
    HeadConfig,
    LayerConfig,
    MlpConfig,
    ModelConfig,
    NormConfig,
    Placement,
)
from athanor.models.families.family import Family
from athanor.models.families.keys import Keys, activation_name
from athanor.models.families.weights import Rule, same

_OFFSET, _BARE = 2, "BartModel"
# How training began, and settings of fairseq that its heirs here have no more.
_WITHOUT_EFFECT = (
    "classif_dropout",
    "decoder_layerdrop",
    "encoder_layerdrop",
    "extra_pos_embeddings",
    "init_std",
    "is_encoder_decoder",
    "num_hidden_layers",
    "replacing_rate",
    "save_step",
)


def _read(keys: Keys) -> EncoderDecoderConfig:
    length = keys.whole("max_position_embeddings", 1024)
    norm = NormConfig(1e-5, "layer", bias=True)
    embedding = EmbeddingConfig(positions=length + _OFFSET, position_offset=_OFFSET, norm=norm)
    return read(keys, "bart", embedding, head_bias=keys.architecture != _BARE)


def read(
    keys: Keys,
    family: str,
    embedding: EmbeddingConfig,
    placement: Placement = "post",
    activation: str = "gelu",
    start_id: int = 2,
    *,
    scaled: bool = False,
    head_bias: bool = True,
) -> EncoderDecoderConfig:
    """What BART's heirs share. activation, start_id, scaled: defaults. scaled: embeddings are multiplied with √d_model.
    Layers with pre-norms are followed by a last norm.
    """
    keys.ignore(*_WITHOUT_EFFECT)
    keys.fixed(is_decoder=False, add_cross_attention=False)
    keys.fixed(
        normalize_before=placement == "pre",
        add_final_layer_norm=placement == "pre",
        normalize_embedding=embedding.norm is not None,
        static_position_embeddings=embedding.sinusoidal,
        add_bias_logits=False,
    )
    d_model, vocab_size = keys.whole("d_model", 1024), keys.whole("vocab_size")
    norm, tied = NormConfig(1e-5, "layer", bias=True), keys.flag("tie_word_embeddings", True)
    shared = keys.flag("share_encoder_decoder_embeddings", True)
    used = keys.activation("activation_function", activation)
    embedding = replace(embedding, scale=d_model**0.5 if keys.flag("scale_embedding", scaled) else 1.0)

    def layers(side: str) -> tuple[LayerConfig, ...]:
        n_heads = keys.whole(f"{side}_attention_heads", 16)
        attention = AttentionConfig(n_heads, n_heads, d_model // n_heads, None, bias=True, output_bias=True)
        mlp = MlpConfig(keys.whole(f"{side}_ffn_dim", 4096), used, gated=False, bias=True)
        read_from = attention if side == "decoder" else None
        return (LayerConfig(attention, mlp, norm, placement, read_from),) * keys.depth(f"{side}_layers", 12)

    encoder = ModelConfig(
        vocab_size, d_model, keys.whole("max_position_embeddings", 1024), layers("encoder"), embedding,
        norm if placement == "pre" else None, None, causal=False, family=family,
    )  # fmt: skip
    decoder = replace(
        encoder,
        vocab_size=vocab_size if shared else keys.whole("decoder_vocab_size", vocab_size),
        layers=layers("decoder"),
        head=HeadConfig(tied=tied, bias=head_bias),
        causal=True,
    )
    start = keys.whole("decoder_start_token_id", start_id)
    return EncoderDecoderConfig(encoder, decoder, start, shared_embedding=tied and shared, family=family)


def _write(config: EncoderDecoderConfig) -> dict[str, Any]:
    bare = config.decoder.head is not None and not config.decoder.head.bias
    return write(config) | ({"architectures": [_BARE]} if bare else {})


def write(config: EncoderDecoderConfig) -> dict[str, Any]:
    """The keys that BART's heirs share."""
    written: dict[str, Any] = {
        "vocab_size": config.encoder.vocab_size,
        "d_model": config.d_model,
        "max_position_embeddings": config.encoder.max_seq_len,
        "scale_embedding": config.encoder.embedding.scale != 1,
        "tie_word_embeddings": config.decoder.head is None or config.decoder.head.tied,
        "decoder_start_token_id": config.start_id,
        "is_encoder_decoder": True,
    }
    for side, model in (("encoder", config.encoder), ("decoder", config.decoder)):
        attention, mlp = model.layers[0].attention, model.layers[0].mlp
        assert isinstance(mlp, MlpConfig)
        written |= {
            f"{side}_layers": model.n_layers,
            f"{side}_attention_heads": attention.n_heads,
            f"{side}_ffn_dim": mlp.d_ff,
            "activation_function": activation_name(mlp.activation),
        }
    return written


def rules(config: EncoderDecoderConfig) -> list[Rule]:
    def row(tensors: list[Tensor]) -> list[Tensor]:
        return [tensors[0][None]]

    def flat(tensors: list[Tensor]) -> list[Tensor]:
        return [tensors[0].flatten()]

    tokens = "shared" if config.shared_embedding else "encoder.embed_tokens"
    made = [
        *same("encoder.embedding.tokens", f"model.{tokens}"),
        *same("decoder.embedding.tokens", "model.decoder.embed_tokens"),
        Rule(("head.weight",), ("lm_head.weight",)),
        Rule(("head.bias",), ("final_logits_bias",), flat, row),
    ]
    where = "sum" if config.encoder.layers[0].placement == "post" else "input"
    for side in ("encoder", "decoder"):
        layer, block = f"model.{side}.layers.*", f"{side}.blocks.*"
        made += same(f"{side}.embedding.positions", f"model.{side}.embed_positions")
        made += same(f"{side}.embedding.norm", f"model.{side}.layernorm_embedding")
        made += same(f"{side}.norm", f"model.{side}.layer_norm")
        for ours, theirs in (("attention", "self_attn"), ("cross", "encoder_attn")):
            module = "attention" if ours == "attention" else "cross_attention"
            made += same(f"{block}.{ours}_norms.{where}", f"{layer}.{theirs}_layer_norm")
            for part, name in (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj"), ("output", "out_proj")):
                made += same(f"{block}.{module}.{part}", f"{layer}.{theirs}.{name}")
        made += same(f"{block}.mlp_norms.{where}", f"{layer}.final_layer_norm")
        made += same(f"{block}.mlp.up", f"{layer}.fc1") + same(f"{block}.mlp.down", f"{layer}.fc2")
    return made


UNUSED = (r"(model\.)?shared\.weight", r"(model\.)?(encoder|decoder)\.embed_tokens\.weight", r"lm_head\.weight")
FAMILY = Family("bart", ("BartForConditionalGeneration", _BARE), _read, _write, rules, "model.", UNUSED)
