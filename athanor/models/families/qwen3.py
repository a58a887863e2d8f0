"""Qwen3 (dense): the portable shape that Athanor trains. Settings this family can carry but we do not compute are
refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from athanor.base.errors import ModelError
from athanor.models.config import AttentionConfig, MlpConfig, ModelConfig, NormConfig, RopeConfig

ARCHITECTURE = "Qwen3ForCausalLM"

# Keys that shape the network and are read.
_READ = {
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "head_dim", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings", "rope_theta", "rope_parameters",
    "rope_scaling",
}  # fmt: skip
# Keys that must have one of these values, or be absent.
_FIXED: dict[str, tuple[Any, ...]] = {
    "model_type": ("qwen3",),
    "hidden_act": ("silu",),
    "attention_bias": (False,),
    "attention_dropout": (0, 0.0),
    "use_sliding_window": (False,),
}
# Keys without an effect on what is computed here.
_IGNORED = {
    "architectures", "transformers_version", "dtype", "torch_dtype", "use_cache", "initializer_range", "bos_token_id",
    "eos_token_id", "pad_token_id", "sliding_window", "max_window_layers", "layer_types", "_name_or_path",
    "return_dict",
    "output_attentions", "output_hidden_states", "chunk_size_feed_forward", "id2label", "label2id", "problem_type",
    "is_encoder_decoder",
}  # fmt: skip


def read_config(config: Mapping[str, Any]) -> ModelConfig:
    """Raises ModelError when a needed key is missing or a setting would be ignored."""
    for name, value in config.items():
        if name in _FIXED:
            if value not in _FIXED[name]:
                raise ModelError(
                    f"{name} = {value!r} is not supported for {ARCHITECTURE}.", f"Supported: {_FIXED[name][0]!r}."
                )
        elif name not in _READ and name not in _IGNORED and value not in (None, False, {}, []):
            raise ModelError(
                f"config.json has an unknown setting {name} = {value!r}.",
                "It would change the model in a way not known here.",
            )
    if set(config.get("layer_types") or ()) - {"full_attention"}:
        raise ModelError(
            "layer_types has layers other than full_attention.", f"{ARCHITECTURE} is supported with full attention."
        )
    missing = sorted(
        {"vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"} - set(config)
    )
    if missing:
        raise ModelError(f"config.json lacks {', '.join(missing)}.")
    n_heads = config["num_attention_heads"]
    return ModelConfig(
        vocab_size=config["vocab_size"],
        d_model=config["hidden_size"],
        n_layers=config["num_hidden_layers"],
        max_seq_len=config.get("max_position_embeddings", 32_768),
        attention=AttentionConfig(
            n_heads,
            config.get("num_key_value_heads") or n_heads,
            config.get("head_dim") or config["hidden_size"] // n_heads,
        ),
        mlp=MlpConfig(config["intermediate_size"]),
        rope=RopeConfig(_rope_theta(config)),
        norm=NormConfig(config.get("rms_norm_eps", 1e-6)),
        tied_embeddings=config.get("tie_word_embeddings", False),
    )


def _rope_theta(config: Mapping[str, Any]) -> float:
    parameters = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind != "default":
        raise ModelError(f"rope type {kind!r} is not supported for {ARCHITECTURE}.", "Supported: 'default'.")
    return float(parameters.get("rope_theta", config.get("rope_theta", 10_000.0)))


def write_config(config: ModelConfig) -> dict[str, Any]:
    """rope_theta is written in its old and new place, for readers before and after transformers 5."""
    if not config.attention.qk_norm:
        raise ModelError(f"{ARCHITECTURE} normalises queries and keys, this model does not.")
    return {
        "architectures": [ARCHITECTURE],
        "model_type": "qwen3",
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "intermediate_size": config.mlp.d_ff,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.attention.n_heads,
        "num_key_value_heads": config.attention.n_kv_heads,
        "head_dim": config.attention.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_seq_len,
        "rms_norm_eps": config.norm.epsilon,
        "tie_word_embeddings": config.tied_embeddings,
        "rope_theta": config.rope.theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope.theta},
        "attention_bias": False,
        "attention_dropout": 0.0,
        "use_sliding_window": False,
        "use_cache": True,
    }


_NAMES: list[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]]] = [
    (re.compile(r"^embedding\."), "model.embed_tokens."),
    (re.compile(r"^norm\."), "model.norm."),
    (re.compile(r"^head\."), "lm_head."),
    (re.compile(r"^blocks\.(\d+)\.attention_norm\."), r"model.layers.\1.input_layernorm."),
    (re.compile(r"^blocks\.(\d+)\.mlp_norm\."), r"model.layers.\1.post_attention_layernorm."),
    (
        re.compile(r"^blocks\.(\d+)\.attention\.(query|key)_norm\."),
        lambda m: f"model.layers.{m[1]}.self_attn.{m[2][0]}_norm.",
    ),
    (
        re.compile(r"^blocks\.(\d+)\.attention\.(query|key|value|output)\."),
        lambda m: f"model.layers.{m[1]}.self_attn.{m[2][0]}_proj.",
    ),
    (re.compile(r"^blocks\.(\d+)\.mlp\.(gate|up|down)\."), r"model.layers.\1.mlp.\2_proj."),
]


def weight_name(name: str) -> str:
    for pattern, replacement in _NAMES:
        if pattern.match(name):
            return pattern.sub(replacement, name)
    raise ModelError(f"{ARCHITECTURE} has no weight for {name}.")
