"""What llama.cpp calls things: its architectures, keys and tensor names, put in terms of Hugging Face's.

A GGUF file is read through the family of its Hugging Face model: its metadata become the keys of a `config.json`, its
tensors the weights of the folder that it was converted from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from athanor.base.errors import ModelError

Metadata = Mapping[str, Any]


@dataclass(frozen=True)
class Architecture:
    """name: llama.cpp's. huggingface: the architecture it was converted from. keys: further settings from the metadata.

    permuted: queries and keys are stored for rotating neighbours instead of halves.
    """

    name: str
    huggingface: str
    keys: Callable[[Metadata], dict[str, Any]] = lambda metadata: {}
    permuted: bool = False


def _qwen3(metadata: Metadata) -> dict[str, Any]:
    return {"head_dim": metadata.get("qwen3.attention.key_length", 128), "attention_bias": False}


ARCHITECTURES = {
    one.name: one
    for one in (
        Architecture("llama", "LlamaForCausalLM", permuted=True),
        Architecture("qwen2", "Qwen2ForCausalLM"),
        Architecture("qwen3", "Qwen3ForCausalLM", _qwen3),
    )
}

_LAYER = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm", "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
_OUTSIDE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


def their_name(name: str) -> str | None:
    """The weight's name in the Hugging Face folder; None for a tensor that is no weight."""
    stem, _, kind = name.rpartition(".")
    if stem in _OUTSIDE:
        return f"{_OUTSIDE[stem]}.{kind}"
    block, _, rest = stem.partition(".")
    number, _, part = rest.partition(".")
    if block == "blk" and number.isdigit() and part in _LAYER:
        return f"model.layers.{number}.{_LAYER[part]}.{kind}"
    return None


def settings_of(metadata: Metadata, tensors: Mapping[str, Any], place: str) -> dict[str, Any]:
    """What the `config.json` of the same model would say."""
    name = metadata.get("general.architecture")
    if name not in ARCHITECTURES:
        raise ModelError(
            f"{place} holds a model of the architecture {name!r}.", f"Read are: {', '.join(ARCHITECTURES)}."
        )
    architecture = ARCHITECTURES[name]

    def take(key: str, default: Any = None) -> Any:
        value = metadata.get(f"{name}.{key}", default)
        if value is None:
            raise ModelError(f"{place} lacks {name}.{key}.")
        return value

    heads = take("attention.head_count")
    vocabulary = metadata.get("tokenizer.ggml.tokens")
    settings = {
        "architectures": [architecture.huggingface],
        "vocab_size": metadata.get(f"{name}.vocab_size") or len(vocabulary if isinstance(vocabulary, list) else ()),
        "hidden_size": take("embedding_length"),
        "intermediate_size": take("feed_forward_length"),
        "num_hidden_layers": take("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": take("attention.head_count_kv", heads),
        "max_position_embeddings": take("context_length"),
        "rms_norm_eps": _decimal(take("attention.layer_norm_rms_epsilon")),
        "rope_theta": _decimal(take("rope.freq_base", 10_000.0)),
        "tie_word_embeddings": "output.weight" not in tensors,
    }
    if f"{name}.attention.key_length" in metadata and name == "llama":
        settings["head_dim"] = take("attention.key_length")
    scaling = metadata.get(f"{name}.rope.scaling.type", "none")
    if scaling not in ("none", "linear"):
        raise ModelError(
            f"{place}: rope scaling {scaling!r} is not read from GGUF yet.", "Take the Hugging Face folder."
        )
    if scaling == "linear":
        settings["rope_scaling"] = {"rope_type": "linear", "factor": take("rope.scaling.factor")}
    if "rope_freqs.weight" in tensors:
        raise ModelError(f"{place} carries rotary frequencies of its own, which are not read yet.", "Take the folder.")
    return settings | architecture.keys(metadata)


def _decimal(value: float) -> float:
    """The number that was rounded to fp32 when the file was written."""
    return float(f"{value:.7g}")


def unpermuted(weight: Tensor, n_heads: int) -> Tensor:
    """Rows of a query or key matrix (or bias) that rotate neighbours, in the order that rotates halves."""
    half = weight.shape[0] // n_heads // 2
    return weight.unflatten(0, (n_heads, half, 2)).transpose(1, 2).flatten(0, 2)
