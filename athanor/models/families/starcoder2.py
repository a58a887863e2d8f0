"""StarCoder2: Mistral with layer norms, biases everywhere, and an MLP without a gate."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from athanor.models.config import LayerConfig, MlpConfig, ModelConfig, NormConfig
from athanor.models.families import llama
from athanor.models.families.family import Family
from athanor.models.families.keys import Keys
from athanor.models.families.weights import Rule, same


def _read(keys: Keys) -> ModelConfig:
    keys.fixed(norm_type="layer_norm", mlp_type="default", scale_attn_weights=True)
    keys.ignore("residual_dropout", "embedding_dropout", "activation_function", "layer_norm_epsilon")  # the hub's
    keys.ignore("attention_softmax_in_fp32", "scale_attention_softmax_in_fp32")
    norm = NormConfig(keys.number("norm_epsilon", 1e-5), "layer", bias=True)
    bias, window = keys.flag("use_bias", True), keys.take("sliding_window")

    def change(layer: LayerConfig, number: int) -> LayerConfig:
        assert isinstance(layer.mlp, MlpConfig)
        layer = replace(layer, norm=norm, mlp=replace(layer.mlp, gated=False, bias=bias))
        return llama.with_attention(layer, bias=bias, output_bias=bias, window=window)

    return llama.read(
        keys, "starcoder2", change=change, hidden_act="gelu_pytorch_tanh", tie_word_embeddings=True,
        max_position_embeddings=4096,
    )  # fmt: skip


def _write(config: ModelConfig) -> dict[str, Any]:
    layer, written = config.layers[0], llama.write(config)
    written["norm_epsilon"] = written.pop("rms_norm_eps")
    written["use_bias"] = written.pop("attention_bias")
    del written["head_dim"]  # always hidden_size / num_attention_heads
    return written | {"sliding_window": layer.attention.window}


def _rules(config: ModelConfig) -> list[Rule]:
    mlp = "model.layers.*.mlp"
    return [*same("blocks.*.mlp.up", f"{mlp}.c_fc"), *same("blocks.*.mlp.down", f"{mlp}.c_proj"), *llama.rules(config)]


FAMILY = Family("starcoder2", ("Starcoder2ForCausalLM",), _read, _write, _rules)
