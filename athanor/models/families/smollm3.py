"""SmolLM3: Llama in which every fourth layer has no positions."""

from __future__ import annotations

from typing import Any

from athanor.base.errors import ModelError
from athanor.models.config import LayerConfig, MlpConfig, ModelConfig
from athanor.models.families import llama
from athanor.models.families.family import Family
from athanor.models.families.keys import Keys
from athanor.models.families.windows import read_windows, write_windows


def _read(keys: Keys) -> ModelConfig:
    n_layers, every = keys.depth("num_hidden_layers"), keys.whole("no_rope_layer_interval", 4)
    turned = keys.take("no_rope_layers") or [int((i + 1) % every != 0) for i in range(n_layers)]
    if not isinstance(turned, list) or len(turned) != n_layers:
        raise ModelError(f"{keys.place}: no_rope_layers must have a number for each layer.")
    window = read_windows(keys)

    def change(layer: LayerConfig, number: int) -> LayerConfig:
        layer = llama.with_attention(layer, window=window(number))
        return layer if turned[number] else llama.with_attention(layer, position=None)

    return llama.read(keys, "smollm3", change=change, rope_theta=2e6, tie_word_embeddings=True)


def _write(config: ModelConfig) -> dict[str, Any]:
    mlp = config.layers[0].mlp
    assert isinstance(mlp, MlpConfig)
    turned = [int(layer.attention.position is not None) for layer in config.layers]
    return llama.write(config) | write_windows(config) | {"mlp_bias": mlp.bias, "no_rope_layers": turned}


FAMILY = Family("smollm3", ("SmolLM3ForCausalLM",), _read, _write, llama.rules)
