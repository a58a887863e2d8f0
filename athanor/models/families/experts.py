"""Mixtures of experts as Mixtral, Qwen and DeepSeek write them: the weights of each expert under a number."""

from __future__ import annotations

from athanor.models.config import ModelConfig, MoeConfig
from athanor.models.families.weights import Rule, parameter, same, stacked


def rules(config: ModelConfig, place: str, names: tuple[str, str, str], shared: str = "shared_experts") -> list[Rule]:
    """place: where the experts lie on disk, with "*" for the layer. names: of gate, up and down in an expert."""
    n = next((layer.mlp.n_experts for layer in config.layers if isinstance(layer.mlp, MoeConfig)), 0)
    made = [
        *parameter("blocks.*.mlp.router.weight", f"{place}.gate.weight"),
        *parameter("blocks.*.mlp.router.correction", f"{place}.gate.e_score_correction_bias"),
    ]
    for ours, theirs in zip(("gate", "up", "down"), names, strict=True):
        made += stacked(f"blocks.*.mlp.experts.{ours}", [f"{place}.experts.{i}.{theirs}.weight" for i in range(n)])
        made += same(f"blocks.*.mlp.shared.{ours}", f"{place}.{shared}.{ours}_proj")
    return made
