"""What a `config.json` of a model would say, from the metadata of its GGUF file: a function for each architecture that
llama.cpp has, in the words of the Hugging Face family that it was converted from.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from athanor.base.errors import ModelError
from athanor.models.gguf.header import Header
from athanor.models.gguf.rope import read_rope

Settings = dict[str, Any]


def _sizes(header: Header) -> Settings:
    """What most architectures say in Llama's words."""
    heads, width = header.whole("attention.head_count"), header.whole("embedding_length")
    return {
        "vocab_size": header.vocabulary,
        "hidden_size": width,
        "intermediate_size": header.whole("feed_forward_length"),
        "num_hidden_layers": header.depth("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": header.whole("attention.head_count_kv", heads),
        "head_dim": header.whole("attention.key_length", width // max(1, heads)),
        "max_position_embeddings": header.whole("context_length"),
        "tie_word_embeddings": not header.has("output.weight"),
    }


def llama(header: Header) -> Settings:
    sizes = _sizes(header)
    found = sizes | {
        "rms_norm_eps": header.decimal("attention.layer_norm_rms_epsilon", 1e-6),
        "attention_bias": header.has("blk.0.attn_q.bias"),
        "mlp_bias": header.has("blk.0.ffn_up.bias"),
        **read_rope(header, sizes["head_dim"]),
    }
    if header.take("expert_count"):
        del found["mlp_bias"]
        return found | {"architectures": ["MixtralForCausalLM"], **_experts(header, "num_local_experts")}
    return found


def _experts(header: Header, count: str) -> Settings:
    return {count: header.whole("expert_count"), "num_experts_per_tok": header.whole("expert_used_count")}


def _without(*names: str) -> Callable[[Header], Settings]:
    """Llama's settings but for those that the family does not have."""

    def settings(header: Header) -> Settings:
        return {name: value for name, value in llama(header).items() if name not in names}

    return settings


plain = _without("attention_bias", "mlp_bias")
biased = _without("mlp_bias")


def qwen3_moe(header: Header) -> Settings:
    return _without_experts(header) | {
        **_experts(header, "num_experts"),
        "moe_intermediate_size": header.whole("expert_feed_forward_length", header.whole("feed_forward_length")),
        "norm_topk_prob": True,
    }


def _without_experts(header: Header) -> Settings:
    sizes = _sizes(header)
    return sizes | {
        "rms_norm_eps": header.decimal("attention.layer_norm_rms_epsilon"),
        "attention_bias": header.has("blk.0.attn_q.bias"),
        **read_rope(header, sizes["head_dim"]),
    }


def gemma(header: Header) -> Settings:
    return plain(header) | {"hidden_activation": "gelu_pytorch_tanh", "tie_word_embeddings": True}


def _gemma_scale(header: Header, settings: Settings, largest: int) -> Settings:
    """llama.cpp scales the scores of the largest model, known by its number of layers, by another rule."""
    usual = settings["num_hidden_layers"] != largest
    quotient = settings["hidden_size"] // max(1, settings["num_attention_heads"])
    return {"query_pre_attn_scalar": settings["head_dim"] if usual else quotient}


def gemma2(header: Header) -> Settings:
    settings = gemma(header)
    return settings | _gemma_scale(header, settings, 46) | {
        "attn_logit_softcapping": header.decimal("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": header.decimal("final_logit_softcapping", 30.0),
        "sliding_window": header.whole("attention.sliding_window", 4096),
    }  # fmt: skip


def gemma3(header: Header) -> Settings:
    settings = gemma(header)
    far, near = settings.pop("rope_parameters"), header.decimal("rope.freq_base_swa", 10_000.0)
    pattern, layers = header.take("attention.sliding_window_pattern", 6), settings["num_hidden_layers"]
    if isinstance(pattern, int) and pattern > 0:
        pattern = [(number + 1) % pattern != 0 for number in range(layers)]
    if not isinstance(pattern, list):
        raise ModelError(f"{header.place}: attention.sliding_window_pattern = {pattern!r} cannot be read.")
    window = header.whole("attention.sliding_window", 0)
    kinds = ["sliding_attention" if window and local else "full_attention" for local in pattern[:layers]]
    return settings | _gemma_scale(header, settings, 62) | {
        "final_logit_softcapping": header.decimal("final_logit_softcapping", 0.0) or None,
        "sliding_window": window or 4096,
        "layer_types": kinds,
        "rope_parameters": {
            "full_attention": far, "sliding_attention": {"rope_type": "default", "rope_theta": near}
        },
    }  # fmt: skip


def olmo2(header: Header) -> Settings:
    return plain(header) | {"tie_word_embeddings": False}


def phi3(header: Header) -> Settings:
    settings = plain(header)
    del settings["head_dim"]
    original = header.take("rope.scaling.original_context_length")
    return settings | {
        "sliding_window": header.whole("attention.sliding_window", 0) or None,
        "original_max_position_embeddings": original or settings["max_position_embeddings"],
    }


def gpt2(header: Header) -> Settings:
    return {
        "vocab_size": header.vocabulary,
        "n_embd": header.whole("embedding_length"),
        "n_head": header.whole("attention.head_count"),
        "n_layer": header.depth("block_count"),
        "n_positions": header.whole("context_length"),
        "n_inner": header.whole("feed_forward_length"),
        "layer_norm_epsilon": header.decimal("attention.layer_norm_epsilon"),
        "tie_word_embeddings": not header.has("output.weight"),
    }


def gpt_bigcode(header: Header) -> Settings:
    heads = header.whole("attention.head_count")
    return gpt2(header) | {"multi_query": header.whole("attention.head_count_kv", heads) == 1}


def gpt_neox(header: Header) -> Settings:
    sizes = _sizes(header)
    rope = read_rope(header, sizes.pop("head_dim"))["rope_parameters"]
    del sizes["num_key_value_heads"]
    return sizes | {
        "hidden_act": "gelu",
        "tie_word_embeddings": False,
        "layer_norm_eps": header.decimal("attention.layer_norm_epsilon"),
        "use_parallel_residual": header.flag("use_parallel_residual", True),
        "rotary_pct": rope.get("partial_rotary_factor", 1.0),
        "rope_parameters": {"partial_rotary_factor": 1.0, **rope},
        "attention_bias": True,
    }


def bloom(header: Header) -> Settings:
    return {
        "vocab_size": header.vocabulary,
        "hidden_size": header.whole("embedding_length"),
        "n_head": header.whole("attention.head_count"),
        "n_layer": header.depth("block_count"),
        "seq_length": header.whole("context_length"),
        "layer_norm_epsilon": header.decimal("attention.layer_norm_epsilon"),
        "tie_word_embeddings": not header.has("output.weight"),
    }


def falcon(header: Header) -> Settings:
    sizes = _sizes(header)
    two, heads = header.has("blk.0.attn_norm_2.weight"), sizes.pop("num_key_value_heads")
    return {
        **{name: value for name, value in sizes.items() if name not in ("intermediate_size", "head_dim")},
        "ffn_hidden_size": sizes["intermediate_size"],
        "num_kv_heads": heads,
        "new_decoder_architecture": two or heads > 1,
        "num_ln_in_parallel_attn": 2 if two else 1,
        "layer_norm_epsilon": header.decimal("attention.layer_norm_epsilon"),
        **read_rope(header, sizes["head_dim"]),
    }


def deepseek(header: Header) -> Settings:
    sizes = _sizes(header)
    rank, turned = header.whole("attention.kv_lora_rank"), header.whole("rope.dimension_count")
    split = header.take("attention.key_length_mla") is not None  # files from before 2025 keep the two matrices in one
    keys = header.whole("attention.key_length_mla" if split else "attention.key_length")
    del sizes["head_dim"], sizes["num_key_value_heads"]
    if header.whole("expert_gating_func", 1) != 2:
        raise ModelError(f"{header.place} holds a DeepSeek before V3, which is not read.")
    rope = read_rope(header, turned)["rope_parameters"]
    growth = header.decimal("rope.scaling.yarn_log_multiplier", 0.0) / 0.1
    if growth:
        rope |= {"mscale": round(growth, 6), "mscale_all_dim": round(growth, 6)}
    return sizes | {
        "rms_norm_eps": header.decimal("attention.layer_norm_rms_epsilon"),
        "moe_intermediate_size": header.whole("expert_feed_forward_length"),
        "n_routed_experts": header.whole("expert_count"),
        "num_experts_per_tok": header.whole("expert_used_count"),
        "n_shared_experts": header.whole("expert_shared_count"),
        "n_group": header.whole("expert_group_count", 1),
        "topk_group": header.whole("expert_group_used_count", 1),
        "routed_scaling_factor": header.decimal("expert_weights_scale", 1.0),
        "norm_topk_prob": header.flag("expert_weights_norm", False),
        "first_k_dense_replace": header.whole("leading_dense_block_count", 0),
        "kv_lora_rank": rank,
        "q_lora_rank": header.take("attention.q_lora_rank"),
        "qk_rope_head_dim": turned,
        "qk_nope_head_dim": keys - turned,
        "v_head_dim": header.whole("attention.value_length_mla" if split else "attention.value_length"),
        "rope_parameters": rope,
    }


def stablelm(header: Header) -> Settings:
    settings = plain(header)
    del settings["head_dim"], settings["rms_norm_eps"]
    return settings | {
        "tie_word_embeddings": False,
        "layer_norm_eps": header.decimal("attention.layer_norm_epsilon"),
        "use_qkv_bias": header.has("blk.0.attn_q.bias"),
        "qk_layernorm": header.has("blk.0.attn_q_norm.weight"),
        "use_parallel_residual": not header.has("blk.0.ffn_norm.weight"),
    }


def granite(header: Header) -> Settings:
    return llama(header) | {
        "embedding_multiplier": header.decimal("embedding_scale", 1.0),
        "attention_multiplier": header.decimal("attention.scale", 1.0),
        "residual_multiplier": header.decimal("residual_scale", 1.0),
        "logits_scaling": header.decimal("logit_scale"),
    }


def starcoder2(header: Header) -> Settings:
    settings = plain(header)
    del settings["head_dim"], settings["rms_norm_eps"]
    return settings | {
        "norm_epsilon": header.decimal("attention.layer_norm_epsilon"),
        "use_bias": True,
    }
