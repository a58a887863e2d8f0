"""Mixtral: Mistral whose feed-forward layers are experts, two of eight for each token."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from athanor.models.config import LayerConfig, MlpConfig, ModelConfig, MoeConfig
from athanor.models.families import experts, llama
from athanor.models.families.family import Family
from athanor.models.families.keys import Keys
from athanor.models.families.weights import Rule


def _read(keys: Keys) -> ModelConfig:
    window = keys.take("sliding_window")
    n, top = keys.whole("num_local_experts", 8), keys.whole("num_experts_per_tok", 2)
    keys.ignore("router_aux_loss_coef", "router_jitter_noise", "output_router_logits")

    def change(layer: LayerConfig, number: int) -> LayerConfig:
        assert isinstance(layer.mlp, MlpConfig)
        return replace(llama.with_attention(layer, window=window), mlp=MoeConfig(n, top, layer.mlp))

    return llama.read(keys, "mixtral", change=change, rope_theta=1e6, max_position_embeddings=131_072)


def _write(config: ModelConfig) -> dict[str, Any]:
    moe = config.layers[0].mlp
    assert isinstance(moe, MoeConfig)
    dense = replace(config, layers=tuple(replace(layer, mlp=moe.expert) for layer in config.layers))
    return llama.write(dense) | {
        "num_local_experts": moe.n_experts,
        "num_experts_per_tok": moe.top_k,
        "sliding_window": config.layers[0].attention.window,
    }


def _rules(config: ModelConfig) -> list[Rule]:
    place = "model.layers.*.block_sparse_moe"
    return [*llama.rules(config), *experts.rules(config, place, ("w1", "w3", "w2"))]


FAMILY = Family("mixtral", ("MixtralForCausalLM",), _read, _write, _rules)
