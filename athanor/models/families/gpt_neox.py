"""GPT-NeoX and Pythia: attention and MLP side by side, a quarter of each head turned, queries, keys and values of each
head together on disk.
"""

from __future__ import annotations

from typing import Any

from athanor.models.config import AttentionConfig, HeadConfig, LayerConfig, MlpConfig, ModelConfig, NormConfig
from athanor.models.families import llama
from athanor.models.families.family import Family
from athanor.models.families.keys import Keys, activation_name
from athanor.models.families.weights import Rule, fused_by_group, same
from athanor.models.position_config import RopeConfig


def _read(keys: Keys) -> ModelConfig:
    d_model, n_heads = keys.whole("hidden_size"), keys.whole("num_attention_heads")
    theta, share = keys.number("rotary_emb_base", 10_000.0), keys.number("rotary_pct", 0.25)
    keys.fixed(is_decoder=False)
    bias = keys.flag("attention_bias", True)
    attention = AttentionConfig(
        n_heads, n_heads, d_model // n_heads, keys.rope(theta, share), bias=bias, output_bias=bias
    )
    mlp = MlpConfig(keys.whole("intermediate_size"), keys.activation("hidden_act", "gelu"), gated=False, bias=True)
    norm = NormConfig(keys.number("layer_norm_eps", 1e-5), "layer", bias=True)
    placement = "parallel" if keys.flag("use_parallel_residual", True) else "pre"
    return ModelConfig(
        keys.whole("vocab_size"),
        d_model,
        keys.whole("max_position_embeddings", 2048),
        (LayerConfig(attention, mlp, norm, placement),) * keys.depth("num_hidden_layers"),  # type: ignore[arg-type]
        norm=norm,
        head=HeadConfig(tied=keys.flag("tie_word_embeddings", False)),
        family="gpt_neox",
    )


def _write(config: ModelConfig) -> dict[str, Any]:
    layer = config.layers[0]
    attention, mlp = layer.attention, layer.mlp
    assert isinstance(attention, AttentionConfig)
    assert isinstance(attention.position, RopeConfig)
    assert isinstance(mlp, MlpConfig)
    assert config.head is not None
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": attention.n_heads,
        "intermediate_size": mlp.d_ff,
        "hidden_act": activation_name(mlp.activation),
        "max_position_embeddings": config.max_seq_len,
        "layer_norm_eps": layer.norm.epsilon,
        "use_parallel_residual": layer.placement == "parallel",
        "attention_bias": attention.bias,
        "tie_word_embeddings": config.head.tied,
        "rotary_pct": attention.position.share,
        "rotary_emb_base": attention.position.theta,
        **llama.write_rope(attention.position),
    }


def _rules(config: ModelConfig) -> list[Rule]:
    layer, attention = "gpt_neox.layers.*", config.layers[0].attention
    assert isinstance(attention, AttentionConfig)
    parts = [f"blocks.*.attention.{name}" for name in ("query", "key", "value")]
    return [
        *same("embedding.tokens", "gpt_neox.embed_in"),
        *same("norm", "gpt_neox.final_layer_norm"),
        *same("head", "embed_out"),
        *same("blocks.*.attention_norms.input", f"{layer}.input_layernorm"),
        *same("blocks.*.mlp_norms.input", f"{layer}.post_attention_layernorm"),
        *fused_by_group(parts, f"{layer}.attention.query_key_value", attention.n_heads, (1, 1, 1), attention.head_dim),
        *same("blocks.*.attention.output", f"{layer}.attention.dense"),
        *same("blocks.*.mlp.up", f"{layer}.mlp.dense_h_to_4h"),
        *same("blocks.*.mlp.down", f"{layer}.mlp.dense_4h_to_h"),
    ]


FAMILY = Family(
    "gpt_neox", ("GPTNeoXForCausalLM",), _read, _write, _rules, "gpt_neox.",
    (r".*\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)", r"embed_out\.weight"),
)  # fmt: skip
