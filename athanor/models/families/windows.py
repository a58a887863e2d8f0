"""Sliding windows: a size, and which layers have it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from athanor.base.errors import ModelError
from athanor.models.config import ModelConfig
from athanor.models.families import llama
from athanor.models.families.keys import LAYER_KINDS, Keys
from athanor.models.position_config import RopeConfig


def read_kinds(keys: Keys, usual: Callable[[int], bool]) -> Callable[[int], bool]:
    """Layer number → whether it has a window, by `layer_types`. usual: where that is absent."""
    n_layers = keys.depth("num_hidden_layers")
    kinds = keys.take("layer_types") or [LAYER_KINDS[usual(number)] for number in range(n_layers)]
    if not isinstance(kinds, list) or len(kinds) != n_layers or any(kind not in LAYER_KINDS for kind in kinds):
        raise ModelError(f"{keys.place}: layer_types must name {' or '.join(LAYER_KINDS)} for each layer.")
    return lambda number: kinds[number] == LAYER_KINDS[1]


def layer_kinds(config: ModelConfig) -> list[str]:
    """`layer_types`."""
    return [LAYER_KINDS[layer.attention.window is not None] for layer in config.layers]


def write_ropes(config: ModelConfig) -> dict[str, Any]:
    """`rope_parameters` of each kind of layer, where each has its own."""
    ropes = zip(layer_kinds(config), (layer.attention.position for layer in config.layers), strict=True)
    return {
        "rope_parameters": {
            kind: llama.write_rope(rope)["rope_parameters"] for kind, rope in ropes if isinstance(rope, RopeConfig)
        }
    }


def read_windows(keys: Keys) -> Callable[[int], int | None]:
    """Layer number → its window, as Qwen and its relatives write it: off unless `use_sliding_window`."""
    size = keys.take("sliding_window") if keys.flag("use_sliding_window", False) else None
    keys.ignore("sliding_window")
    first = keys.take("max_window_layers", 28)
    windowed = read_kinds(keys, lambda number: size is not None and number >= first)
    if size is None and any(windowed(number) for number in range(keys.depth("num_hidden_layers"))):
        raise ModelError(f"{keys.place}: layer_types names sliding_attention, but there is no sliding_window in use.")
    return lambda number: size if windowed(number) else None


def write_windows(config: ModelConfig) -> dict[str, Any]:
    windows = [layer.attention.window for layer in config.layers]
    return {
        "use_sliding_window": any(windows),
        "sliding_window": next((window for window in windows if window), None),
        "max_window_layers": next((i for i, window in enumerate(windows) if window), len(windows)),
        "layer_types": layer_kinds(config),
    }
