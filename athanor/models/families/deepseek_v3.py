"""DeepSeek-V3: latent attention, a few dense layers, then many experts chosen by sigmoid scores within the best groups,
balanced by a bias, beside one that sees every token. The layers for predicting several tokens at once are not used.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from athanor.models.config import (
    HeadConfig,
    LatentAttentionConfig,
    LayerConfig,
    MlpConfig,
    ModelConfig,
    MoeConfig,
    NormConfig,
)
from athanor.models.families import experts, llama
from athanor.models.families.family import Family
from athanor.models.families.keys import Keys, activation_name
from athanor.models.families.weights import Rule, same


def _read(keys: Keys) -> ModelConfig:
    rope = replace(keys.rope(length=4096), interleaved=keys.flag("rope_interleave", True))
    keys.ignore("num_nextn_predict_layers", "num_mtp_layers", "ep_size")
    keys.ignore("aux_loss_alpha", "seq_aux", "output_router_logits")
    n_heads, plain, turned = (
        keys.whole("num_attention_heads"), keys.whole("qk_nope_head_dim", 128), keys.whole("qk_rope_head_dim", 64)
    )  # fmt: skip
    keys.fixed(topk_method="noaux_tc", scoring_func="sigmoid", moe_layer_freq=1, num_key_value_heads=n_heads)
    keys.fixed(head_dim=turned, qk_head_dim=plain + turned)
    q_rank = keys.settings.get("q_lora_rank", 1536)
    keys.ignore("q_lora_rank")
    bias = keys.flag("attention_bias", False)
    attention = LatentAttentionConfig(
        n_heads, keys.whole("kv_lora_rank", 512), plain, turned,
        keys.whole("v_head_dim", 128),
        rope, q_rank, bias, _scale(keys, plain + turned), norm=NormConfig(1e-6),
    )  # fmt: skip
    activation = keys.activation("hidden_act", "silu")
    expert = MlpConfig(keys.whole("moe_intermediate_size", 2048), activation)
    moe = MoeConfig(
        keys.whole("n_routed_experts", 256), keys.whole("num_experts_per_tok", 8), expert,
        replace(expert, d_ff=expert.d_ff * keys.whole("n_shared_experts", 1)), "sigmoid",
        keys.flag("norm_topk_prob", True), keys.whole("n_group", 8), keys.whole("topk_group", 4), True,
        keys.number("routed_scaling_factor", 2.5),
    )  # fmt: skip
    norm, dense = NormConfig(keys.number("rms_norm_eps", 1e-6)), keys.whole("first_k_dense_replace", 3)
    mlp = MlpConfig(keys.whole("intermediate_size"), activation)
    return ModelConfig(
        keys.whole("vocab_size"),
        keys.whole("hidden_size"),
        keys.whole("max_position_embeddings", 4096),
        tuple(LayerConfig(attention, mlp if i < dense else moe, norm) for i in range(keys.depth("num_hidden_layers"))),
        norm=norm,
        head=HeadConfig(tied=keys.flag("tie_word_embeddings", False)),
        family="deepseek_v3",
    )


def _scale(keys: Keys, dim: int) -> float | None:
    """With YaRN the scores are scaled too, by a number of the file's own."""
    found = keys.rope_settings()
    share, factor = found.number("mscale_all_dim", 0.0), found.number("factor", 1.0)
    if (found.take("rope_type") or found.take("type", "default")) == "default" or not share or factor <= 1:
        return None
    return dim**-0.5 * (0.1 * share * math.log(factor) + 1) ** 2


def _write(config: ModelConfig) -> dict[str, Any]:
    attention = config.layers[0].attention
    assert isinstance(attention, LatentAttentionConfig)
    assert config.head is not None
    moe = next(layer.mlp for layer in config.layers if isinstance(layer.mlp, MoeConfig))
    dense = [layer.mlp for layer in config.layers if isinstance(layer.mlp, MlpConfig)]
    written = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "intermediate_size": dense[0].d_ff if dense else moe.expert.d_ff,
        "moe_intermediate_size": moe.expert.d_ff,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": attention.n_heads,
        "num_key_value_heads": attention.n_heads,
        "n_shared_experts": moe.shared.d_ff // moe.expert.d_ff if moe.shared else 0,
        "n_routed_experts": moe.n_experts,
        "routed_scaling_factor": moe.scale,
        "kv_lora_rank": attention.kv_rank,
        "q_lora_rank": attention.q_rank,
        "qk_rope_head_dim": attention.rotary_dim,
        "qk_nope_head_dim": attention.plain_dim,
        "v_head_dim": attention.value_dim,
        "n_group": moe.groups,
        "topk_group": moe.top_groups,
        "num_experts_per_tok": moe.top_k,
        "first_k_dense_replace": len(dense),
        "norm_topk_prob": moe.normalise,
        "hidden_act": activation_name(moe.expert.activation),
        "max_position_embeddings": config.max_seq_len,
        "rms_norm_eps": config.layers[0].norm.epsilon,
        "tie_word_embeddings": config.head.tied,
        "rope_interleave": attention.position.interleaved,
        "attention_bias": attention.bias,
        **llama.write_rope(attention.position),
    }
    if attention.scale is not None and attention.position.scaling is not None:
        factor = attention.position.scaling.factor
        growth = math.sqrt(attention.scale * attention.key_dim**0.5)
        written["rope_parameters"] |= {"mscale_all_dim": (growth - 1) / (0.1 * math.log(factor))}
    return written


def _rules(config: ModelConfig) -> list[Rule]:
    layer = "model.layers.*.self_attn"
    names = ("gate_proj", "up_proj", "down_proj")
    attention = config.layers[0].attention
    assert isinstance(attention, LatentAttentionConfig)
    return [
        *same("blocks.*.attention.query_down", f"{layer}.q_a_proj"),
        *same("blocks.*.attention.query_norm", f"{layer}.q_a_layernorm"),
        *same("blocks.*.attention.query", f"{layer}.q_b_proj" if attention.q_rank else f"{layer}.q_proj"),
        *same("blocks.*.attention.key_value_down", f"{layer}.kv_a_proj_with_mqa"),
        *same("blocks.*.attention.key_value_norm", f"{layer}.kv_a_layernorm"),
        *same("blocks.*.attention.key_value", f"{layer}.kv_b_proj"),
        *llama.rules(config),
        *experts.rules(config, "model.layers.*.mlp", names),
    ]


FAMILY = Family("deepseek_v3", ("DeepseekV3ForCausalLM",), _read, _write, _rules)
