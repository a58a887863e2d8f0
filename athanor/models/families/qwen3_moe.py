"""Qwen3-MoE: Qwen3 whose feed-forward layers are many small experts, but for the layers named as dense."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from athanor.models.config import LayerConfig, MlpConfig, ModelConfig, MoeConfig
from athanor.models.families import experts, llama
from athanor.models.families.family import Family
from athanor.models.families.keys import Keys
from athanor.models.families.weights import Rule
from athanor.models.families.windows import read_windows, write_windows


def _read(keys: Keys) -> ModelConfig:
    window, dense, step = read_windows(keys), keys.take("mlp_only_layers") or [], keys.whole("decoder_sparse_step", 1)
    n, top = keys.whole("num_experts", keys.whole("num_local_experts", 128)), keys.whole("num_experts_per_tok", 8)
    d_ff, normalise = keys.whole("moe_intermediate_size", 768), keys.flag("norm_topk_prob", False)
    keys.ignore("router_aux_loss_coef", "output_router_logits")

    def change(layer: LayerConfig, number: int) -> LayerConfig:
        layer = llama.with_attention(layer, qk_norm="head", window=window(number))
        assert isinstance(layer.mlp, MlpConfig)
        if number in dense or (number + 1) % step:
            return layer
        return replace(layer, mlp=MoeConfig(n, top, replace(layer.mlp, d_ff=d_ff), normalise=normalise))

    return llama.read(keys, "qwen3_moe", change=change, head_dim=128, max_position_embeddings=32_768)


def _write(config: ModelConfig) -> dict[str, Any]:
    moe = next(layer.mlp for layer in config.layers if isinstance(layer.mlp, MoeConfig))
    dense = [i for i, layer in enumerate(config.layers) if isinstance(layer.mlp, MlpConfig)]
    plain = config.layers[dense[0]].mlp if dense else moe.expert
    written = llama.write(replace(config, layers=tuple(replace(layer, mlp=plain) for layer in config.layers)))
    return written | write_windows(config) | {
        "num_experts": moe.n_experts,
        "num_experts_per_tok": moe.top_k,
        "moe_intermediate_size": moe.expert.d_ff,
        "norm_topk_prob": moe.normalise,
        "mlp_only_layers": dense,
    }  # fmt: skip


def _rules(config: ModelConfig) -> list[Rule]:
    names = ("gate_proj", "up_proj", "down_proj")
    return [*llama.rules(config), *experts.rules(config, "model.layers.*.mlp", names)]


FAMILY = Family("qwen3_moe", ("Qwen3MoeForCausalLM",), _read, _write, _rules)
