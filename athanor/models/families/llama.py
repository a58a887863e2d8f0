"""Llama 1, 2 and 3, and what the many families of its shape share: reading and writing its keys, and its weights'
names.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from athanor.models.config import AttentionConfig, HeadConfig, LayerConfig, MlpConfig, ModelConfig, NormConfig
from athanor.models.families.family import Family
from athanor.models.families.keys import Keys, activation_name
from athanor.models.families.weights import Rule, same
from athanor.models.position_config import RopeConfig, RopeScaling

Change = Callable[[LayerConfig, int], LayerConfig]


def read(
    keys: Keys,
    family: str,
    *,
    change: Change | None = None,
    rope: RopeConfig | None = None,
    max_position_embeddings: int = 2048,
    head_dim: int | None = None,
    hidden_act: str = "silu",
    attention_bias: bool = False,
    rope_theta: float = 10_000.0,
    partial_rotary_factor: float = 1.0,
    tie_word_embeddings: bool = False,
) -> ModelConfig:
    """The common keys. change: makes of the usual layer, and its number, the family's own. rope: where the family has
    read it already. The others are defaults of keys that the file may lack; head_dim None: d_model / n_heads.
    """
    n_heads, d_model = keys.whole("num_attention_heads"), keys.whole("hidden_size")
    length, bias = max_position_embeddings, keys.flag("attention_bias", attention_bias)
    attention = AttentionConfig(
        n_heads,
        keys.whole("num_key_value_heads", n_heads),
        keys.whole("head_dim", d_model // max(1, n_heads) if head_dim is None else head_dim),
        position=rope or keys.rope(rope_theta, partial_rotary_factor, length=length),
        bias=bias,
        output_bias=bias,
    )
    mlp = MlpConfig(
        keys.whole("intermediate_size"), keys.activation("hidden_act", hidden_act), bias=keys.flag("mlp_bias", False)
    )
    layer = LayerConfig(attention, mlp, NormConfig(keys.number("rms_norm_eps", 1e-6)))
    layers = tuple(change(layer, i) if change else layer for i in range(keys.depth("num_hidden_layers")))
    return ModelConfig(
        vocab_size=keys.whole("vocab_size"),
        d_model=d_model,
        max_seq_len=keys.whole("max_position_embeddings", length),
        layers=layers,
        norm=layers[0].norm if layers else layer.norm,
        head=HeadConfig(tied=keys.flag("tie_word_embeddings", tie_word_embeddings)),
        family=family,
    )


def with_attention(layer: LayerConfig, **changes: Any) -> LayerConfig:
    """`layer` with another attention."""
    return replace(layer, attention=replace(layer.attention, **changes))


def write(config: ModelConfig) -> dict[str, Any]:
    """The common keys; rope_theta in its old and new place, for readers before and after transformers 5."""
    layer = config.layers[0]
    attention, mlp = layer.attention, layer.mlp
    assert isinstance(attention, AttentionConfig)
    assert isinstance(mlp, MlpConfig)
    assert config.head is not None
    written = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "intermediate_size": mlp.d_ff,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": attention.n_heads,
        "num_key_value_heads": attention.n_kv_heads,
        "head_dim": attention.head_dim,
        "hidden_act": activation_name(mlp.activation),
        "max_position_embeddings": config.max_seq_len,
        "rms_norm_eps": layer.norm.epsilon,
        "tie_word_embeddings": config.head.tied,
        "attention_bias": attention.bias,
        "attention_dropout": 0.0,
        "use_cache": True,
    }
    return written | (write_rope(attention.position) if isinstance(attention.position, RopeConfig) else {})


def write_rope(rope: RopeConfig) -> dict[str, Any]:
    parameters: dict[str, Any] = {"rope_type": "default", "rope_theta": rope.theta}
    if rope.scaling is not None:
        parameters |= _write_scaling(rope.scaling)
    if rope.share != 1:
        parameters["partial_rotary_factor"] = rope.share
    return {"rope_theta": rope.theta, "rope_parameters": parameters}


def _write_scaling(scaling: RopeScaling) -> dict[str, Any]:
    written: dict[str, Any] = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind in ("llama3", "yarn", "longrope"):
        written["original_max_position_embeddings"] = scaling.original_length
    if scaling.kind == "llama3":
        written |= {"low_freq_factor": scaling.low, "high_freq_factor": scaling.high}
    if scaling.kind == "yarn":
        written |= {"beta_slow": scaling.low, "beta_fast": scaling.high, "truncate": scaling.truncate}
    if scaling.kind == "longrope":
        written |= {"short_factor": list(scaling.short_factors), "long_factor": list(scaling.long_factors)}
    if scaling.attention_factor is not None:
        written["attention_factor"] = scaling.attention_factor
    return written


def rules(config: ModelConfig) -> list[Rule]:
    """Llama's names; a family puts its own in front where they differ."""
    layer = "model.layers.*"
    return [
        *same("embedding.tokens", "model.embed_tokens"),
        *same("norm", "model.norm"),
        *same("head", "lm_head"),
        *same("blocks.*.attention_norms.input", f"{layer}.input_layernorm"),
        *same("blocks.*.mlp_norms.input", f"{layer}.post_attention_layernorm"),
        *same("blocks.*.attention.query", f"{layer}.self_attn.q_proj"),
        *same("blocks.*.attention.key", f"{layer}.self_attn.k_proj"),
        *same("blocks.*.attention.value", f"{layer}.self_attn.v_proj"),
        *same("blocks.*.attention.output", f"{layer}.self_attn.o_proj"),
        *same("blocks.*.attention.query_norm", f"{layer}.self_attn.q_norm"),
        *same("blocks.*.attention.key_norm", f"{layer}.self_attn.k_norm"),
        *same("blocks.*.mlp.gate", f"{layer}.mlp.gate_proj"),
        *same("blocks.*.mlp.up", f"{layer}.mlp.up_proj"),
        *same("blocks.*.mlp.down", f"{layer}.mlp.down_proj"),
    ]


def _read(keys: Keys) -> ModelConfig:
    keys.ignore("is_llama_config")  # SmolLM's
    return read(keys, "llama")


def _write(config: ModelConfig) -> dict[str, Any]:
    mlp = config.layers[0].mlp
    assert isinstance(mlp, MlpConfig)
    return write(config) | {"mlp_bias": mlp.bias}


FAMILY = Family("llama", ("LlamaForCausalLM",), _read, _write, rules)
