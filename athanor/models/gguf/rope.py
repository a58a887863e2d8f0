"""How llama.cpp says that rotary frequencies are stretched: a few metadata, or a tensor with a divisor a frequency."""

from __future__ import annotations

import math
from reprlib import repr as shown
from typing import Any

import torch
from torch import Tensor

from athanor.base.errors import ModelError
from athanor.models.config import LatentAttentionConfig, ModelConfig
from athanor.models.gguf.header import Header
from athanor.models.position_config import RopeConfig, RopeScaling
from athanor.models.rope import rotary_frequencies

_LLAMA3_LENGTH = 8192  # of all models with this scaling so far; the file does not say it
_LARGEST = 1 << 16


def read_rope(header: Header, head_dim: int) -> dict[str, Any]:
    """`rope_parameters` of a `config.json`."""
    turned = header.whole("rope.dimension_count", head_dim)
    found: dict[str, Any] = {"rope_type": "default", "rope_theta": header.decimal("rope.freq_base", 10_000.0)}
    if turned != head_dim:
        found["partial_rotary_factor"] = turned / max(1, head_dim)
    kind, factor = header.take("rope.scaling.type", "none"), header.decimal("rope.scaling.factor", 0.0)
    original = header.take("rope.scaling.original_context_length") or header.take("context_length")
    attention = header.decimal("rope.scaling.attn_factor", 1.0)
    if header.has("rope_factors_long.weight") or header.has("rope_factors_short.weight"):
        found |= _given(header, "rope_factors_short.weight", "rope_factors_long.weight")
        found |= {"original_max_position_embeddings": original, "attention_factor": attention}
    elif header.has("rope_freqs.weight"):
        found |= _llama3(header, found["rope_theta"], turned) or {
            **_given(header, "rope_freqs.weight", "rope_freqs.weight"),
            "original_max_position_embeddings": original,
            "attention_factor": 1.0,
        }
    elif kind == "linear" and factor:
        found |= {"rope_type": "linear", "factor": factor}
    elif kind == "yarn":
        found |= {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}
        found |= {
            "beta_fast": header.decimal("rope.scaling.yarn_beta_fast", 32.0),
            "beta_slow": header.decimal("rope.scaling.yarn_beta_slow", 1.0),
        }
        if attention != 1 and factor > 1:
            found["attention_factor"] = attention * (0.1 * math.log(factor) + 1)
    elif kind not in ("none", "linear", "longrope"):
        raise ModelError(
            f"{header.place}: rope scaling {shown(kind)} is not known.", "Known: none, linear, yarn, longrope."
        )
    return {"rope_parameters": found}


def _given(header: Header, short: str, long: str) -> dict[str, Any]:
    return {"rope_type": "longrope", "short_factor": _list(header, short), "long_factor": _list(header, long)}


def _list(header: Header, name: str) -> list[float]:
    if not header.has(name):
        raise ModelError(f"{header.place} lacks the tensor {name}.")
    values: Tensor = header.tensor(name)
    if values.dim() != 1 or values.numel() > _LARGEST or not bool((values > 0).all() and values.isfinite().all()):
        raise ModelError(f"{header.place}: {name} is not a row of positive numbers.")
    return [float(f"{value:.7g}") for value in values.tolist()]


def _llama3(header: Header, theta: float, dim: int) -> dict[str, Any] | None:
    """The parameters of Llama 3's rule where it makes the divisors in the file, else None."""
    values = torch.tensor(_list(header, "rope_freqs.weight"))
    if 2 * len(values) != dim:
        raise ModelError(f"{header.place}: rope_freqs.weight has {len(values)} numbers for {dim} turned dimensions.")
    factor = float(values[-1])
    for length in dict.fromkeys((_LLAMA3_LENGTH, header.take("context_length"))):
        if not isinstance(length, int) or not 0 < length < 1 << 31:
            continue
        scaling = RopeScaling("llama3", factor, length)
        if torch.allclose(_divisors(RopeConfig(theta, scaling=scaling), dim), values, rtol=1e-4):
            return {
                "rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": length,
            }  # fmt: skip
    return None


def _divisors(rope: RopeConfig, dim: int) -> Tensor:
    """(dim / 2,) by what each frequency is divided."""
    start = torch.zeros(1, 1, dtype=torch.int64)
    return rotary_frequencies(start, dim, RopeConfig(rope.theta))[0] / rotary_frequencies(start, dim, rope)[0]


def rope_metadata(config: ModelConfig) -> dict[str, Any]:
    """Of the layers without a window, whose positions are the far ones."""
    layer = next((one for one in config.layers if not one.attention.window), config.layers[0])
    rope = layer.attention.position
    if not isinstance(rope, RopeConfig):
        return {}
    written: dict[str, Any] = {
        "rope.dimension_count": layer.attention.rotary_dim, "rope.freq_base": float(rope.theta)
    }  # fmt: skip
    scaling = rope.scaling
    if scaling is None:
        return written
    match scaling.kind:
        case "linear":
            written |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(scaling.factor)}
        case "yarn":
            written |= {
                "rope.scaling.type": "yarn",
                "rope.scaling.factor": float(scaling.factor),
                "rope.scaling.original_context_length": scaling.original_length,
                "rope.scaling.yarn_beta_fast": float(scaling.high),
                "rope.scaling.yarn_beta_slow": float(scaling.low),
            }
            if scaling.attention_factor is not None and not isinstance(layer.attention, LatentAttentionConfig):
                usual = 0.1 * math.log(scaling.factor) + 1 if scaling.factor > 1 else 1.0
                written["rope.scaling.attn_factor"] = scaling.attention_factor / usual
        case "longrope":
            written |= {
                "rope.scaling.type": "longrope",
                "rope.scaling.original_context_length": scaling.original_length,
                "rope.scaling.attn_factor": _longrope_attention(scaling),
            }
        case "dynamic":
            raise ModelError("llama.cpp has no dynamic rope scaling.", "Linear, yarn, llama3 and longrope it has.")
    return written


def _longrope_attention(scaling: RopeScaling) -> float:
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    growth = scaling.factor
    return math.sqrt(1 + math.log(growth) / math.log(scaling.original_length)) if growth > 1 else 1.0


def rope_tensors(config: ModelConfig) -> dict[str, Tensor]:
    """The tensors that say a divisor a frequency."""
    attention = config.layers[0].attention
    rope = attention.position
    if not isinstance(rope, RopeConfig) or rope.scaling is None:
        return {}
    scaling = rope.scaling
    if scaling.kind == "llama3":
        return {"rope_freqs.weight": _divisors(rope, attention.rotary_dim)}
    if scaling.kind == "longrope":
        return {
            "rope_factors_long.weight": torch.tensor(scaling.long_factors),
            "rope_factors_short.weight": torch.tensor(scaling.short_factors),
        }
    return {}


def turn_alike(one: RopeConfig, other: RopeConfig, dim: int) -> bool:
    """Whether both turn by the same angles, up to what fp32 in a file rounds off."""
    if (one.share, one.interleaved) != (other.share, other.interleaved):
        return False
    for length in (1, *(rope.scaling.original_length + 1 for rope in (one, other) if rope.scaling is not None)):
        last = torch.tensor([[length - 1]])
        (ours, factor), (theirs, their_factor) = (rotary_frequencies(last, dim, rope) for rope in (one, other))
        if not torch.allclose(ours, theirs, rtol=1e-5, atol=0) or not math.isclose(factor, their_factor, rel_tol=1e-5):
            return False
    return True
