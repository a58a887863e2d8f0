"""OPT: GPT-2 with ReLU, positions that begin at 2 and count only what is no padding; its 350M has post-norms and narrow
embeddings.
"""

from __future__ import annotations

from typing import Any

from athanor.models.config import (
    AttentionConfig,
    EmbeddingConfig,
    HeadConfig,
    LayerConfig,
    MlpConfig,
    ModelConfig,
    NormConfig,
)
from athanor.models.families.family import Family
from athanor.models.families.keys import Keys, activation_name
from athanor.models.families.weights import Rule, same

_OFFSET = 2


def _read(keys: Keys) -> ModelConfig:
    d_model, n_heads, bias = (
        keys.whole("hidden_size"),
        keys.whole("num_attention_heads"),
        keys.flag("enable_bias", True),
    )
    length, size = keys.whole("max_position_embeddings", 2048), keys.whole("word_embed_proj_dim", d_model)
    keys.fixed(layer_norm_elementwise_affine=True, share_decoder_input_output_embed=True)
    keys.ignore("init_std", "output_projection")
    first = keys.flag("do_layer_norm_before", True)
    norm = NormConfig(1e-5, "layer", bias=True)
    attention = AttentionConfig(n_heads, n_heads, d_model // n_heads, None, bias=bias, output_bias=bias)
    activation = keys.activation("activation_function", "relu")
    mlp = MlpConfig(keys.whole("ffn_dim"), activation, gated=False, bias=bias)
    layer = LayerConfig(attention, mlp, norm, "pre" if first else "post")
    narrow = size != d_model
    return ModelConfig(
        keys.whole("vocab_size"),
        d_model,
        length,
        (layer,) * keys.depth("num_hidden_layers"),
        EmbeddingConfig(
            size if narrow else None, widen_bias=False, widen_first=True, positions=length + _OFFSET,
            position_offset=_OFFSET, positions_from_text=True,
        ),
        norm if first and not keys.flag("_remove_final_layer_norm", False) else None,
        HeadConfig(tied=keys.flag("tie_word_embeddings", True), narrow=narrow),
        family="opt",
    )  # fmt: skip


def _write(config: ModelConfig) -> dict[str, Any]:
    layer = config.layers[0]
    assert isinstance(layer.attention, AttentionConfig)
    assert isinstance(layer.mlp, MlpConfig)
    assert config.head is not None
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": layer.attention.n_heads,
        "ffn_dim": layer.mlp.d_ff,
        "max_position_embeddings": config.max_seq_len,
        "word_embed_proj_dim": config.embedding.size or config.d_model,
        "do_layer_norm_before": layer.placement == "pre",
        "_remove_final_layer_norm": layer.placement == "pre" and config.norm is None,
        "activation_function": activation_name(layer.mlp.activation),
        "enable_bias": layer.attention.bias,
        "tie_word_embeddings": config.head.tied,
    }


def _rules(config: ModelConfig) -> list[Rule]:
    layer, where = "model.decoder.layers.*", "input" if config.layers[0].placement == "pre" else "sum"
    return [
        *same("embedding.tokens", "model.decoder.embed_tokens"),
        *same("embedding.positions", "model.decoder.embed_positions"),
        *same("embedding.widen", "model.decoder.project_in"),
        *same("norm", "model.decoder.final_layer_norm"),
        *same("head.narrow", "model.decoder.project_out"),
        *same("head", "lm_head"),
        *same(f"blocks.*.attention_norms.{where}", f"{layer}.self_attn_layer_norm"),
        *same(f"blocks.*.mlp_norms.{where}", f"{layer}.final_layer_norm"),
        *same("blocks.*.attention.query", f"{layer}.self_attn.q_proj"),
        *same("blocks.*.attention.key", f"{layer}.self_attn.k_proj"),
        *same("blocks.*.attention.value", f"{layer}.self_attn.v_proj"),
        *same("blocks.*.attention.output", f"{layer}.self_attn.out_proj"),
        *same("blocks.*.mlp.up", f"{layer}.fc1"),
        *same("blocks.*.mlp.down", f"{layer}.fc2"),
    ]


FAMILY = Family("opt", ("OPTForCausalLM", "OPTModel"), _read, _write, _rules, "model.", (r"lm_head\.weight",))
