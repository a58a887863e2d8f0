"""A decoder of the Llama shape as the structure that the kernels execute: which configurations these are, and where
each weight goes.

The shape: RMSNorm before attention and feed-forward part, grouped-query attention with rotary positions (which single
layers may lack), a SiLU-gated feed-forward part. Norms of queries and keys by head, biases, sliding windows and a head
of its own may be there or not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import get_args

import numpy as np
import torch
from torch import Tensor

from athanor.base.errors import ModelError
from athanor.engine.native import library
from athanor.engine.native.packing import (
    CACHES,
    GROUP,
    INT8,
    KINDS,
    KINDS_OF_BLOCKS,
    Arena,
    Format,
    Packed,
    fill,
    make,
    packed_size,
    padded,
)
from athanor.engine.rung import Cache, check_finite
from athanor.models.config import AttentionConfig, EmbeddingConfig, LayerConfig, MlpConfig, ModelConfig, NormConfig
from athanor.models.decoder import Decoder
from athanor.models.gguf.blocks import Blocks
from athanor.models.norm import RMSNorm
from athanor.models.position_config import RopeConfig

_PARTS = {
    "query": "attention.query", "key": "attention.key", "value": "attention.value", "output": "attention.output",
    "gate": "mlp.gate", "up": "mlp.up", "down": "mlp.down",
}  # fmt: skip
_NORMS = {
    "attention_norm": "attention_norms.input", "mlp_norm": "mlp_norms.input", "query_norm": "attention.query_norm",
    "key_norm": "attention.key_norm",
}  # fmt: skip
_TABLES = {"embedding": "embedding.tokens.weight", "head": "head.weight"}
_LARGEST_HEAD = 1024
Planned = tuple[int, Tensor, Tensor | None]


def unsupported(config: ModelConfig) -> str:
    """Why the kernels cannot execute such a model, or nothing."""
    first = config.layers[0]
    checks = (
        (config.embedding != EmbeddingConfig(), "its embedding is more than a table"),
        (config.head is None or replace(config.head, tied=True) != type(config.head)(), "its head is not plain"),
        (not config.causal or config.sharing is not None, "its layers are not a plain causal stack"),
        (not _is_rms(config.norm), "its final norm is not RMSNorm"),
        (not all(_is_llama(layer) for layer in config.layers), "its layers are not of the Llama shape"),
    )
    if found := next((reason for wrong, reason in checks if wrong), ""):
        return found
    ropes = {layer.attention.position for layer in config.layers} - {None}
    sizes = {(_sizes(layer), layer.norm.epsilon) for layer in config.layers}
    if len(ropes) > 1 or len(sizes) > 1:
        return "its layers differ in size or positions"
    rope = next(iter(ropes), None)
    if isinstance(rope, RopeConfig) and (
        rope.interleaved or (rope.scaling is not None and rope.scaling.kind in ("dynamic", "longrope"))
    ):
        return "its rotary positions are interleaved or depend on the length"
    assert isinstance(first.attention, AttentionConfig)
    return "its heads are too large" if first.attention.head_dim > _LARGEST_HEAD else ""


def _is_rms(norm: NormConfig | None) -> bool:
    return norm is not None and norm.kind == "rms" and norm.offset == 0


def _is_llama(layer: LayerConfig) -> bool:
    attention, mlp = layer.attention, layer.mlp
    return (
        isinstance(attention, AttentionConfig)
        and isinstance(mlp, MlpConfig)
        and (attention.position is None or isinstance(attention.position, RopeConfig))
        and attention.qk_norm in (None, "head")
        and attention.soft_cap is None
        and (mlp.activation, mlp.gated) == ("silu", True)
        and _is_rms(layer.norm)
        and (layer.placement, layer.attention_norm, layer.residual_scale) == ("pre", True, 1.0)
        and layer.cross_attention is None
        and layer.convolution is None
    )


def _sizes(layer: LayerConfig) -> tuple[float, ...]:
    attention, mlp = layer.attention, layer.mlp
    assert isinstance(attention, AttentionConfig)
    assert isinstance(mlp, MlpConfig)
    return attention.n_heads, attention.n_kv_heads, attention.head_dim, mlp.d_ff, attention.scale or 0


class NativeWeights:
    """A model's weights, packed. structure: what `athanor_open` takes; it and all it points to live as long as this.

    form: of the matrices; embedding and head have 8 bits where the matrices have 8 or 4.
    """

    def __init__(
        self,
        model: Decoder,
        form: Format,
        blocks: Mapping[str, Blocks] | None = None,
        *,
        wide: bool = False,
        cache: Cache = "auto",
    ) -> None:
        """blocks: matrices of a GGUF file, by the names of the model's parameters, that are taken over as they are.
        wide: matrices of 8 and 4 bits are multiplied with activations of 16 bits instead of 8. cache: of keys and
        values, by default fp32 where the weights are, else fp16.

        Raises ModelError for a model that the kernels cannot execute, or weights that are not finite."""
        if form not in get_args(Format):
            raise ModelError(f"There is no number format {form!r}.", f"Accepted: {', '.join(get_args(Format))}.")
        if reason := unsupported(model.config):
            raise ModelError(f"The kernels in C cannot execute this model: {reason}.", "torch's operations can.")
        self.config, self.form, self.wide = model.config, form, wide
        self.cache = cache if cache != "auto" else "fp32" if form == "fp32" else "fp16"
        self._layers = (library.Layer * model.config.n_layers)()
        self._blocks = {name: KINDS_OF_BLOCKS[found.form] for name, found in (blocks or {}).items()}
        plan = self._plan(model)
        arena = Arena(sum(packed_size(kind, *_sides(matrix), bias is not None) for kind, matrix, bias in plan.values()))
        self._packed: dict[str, Packed] = {
            name: make(arena, kind, *_sides(matrix), bias is not None) for name, (kind, matrix, bias) in plan.items()
        }
        self._gains = {name: _zeros_behind(len(gain)) for name, gain in _gains(model).items()}
        self.structure = self._describe()
        self._fill(model, blocks or {})

    @property
    def bytes_per_token(self) -> int:
        """Of weights that one row passes."""
        inside = self._packed if "head" in self._packed else {**self._packed, "head": self._packed["embedding"]}
        return sum(packed.bytes for name, packed in inside.items() if name != "embedding")

    @torch.no_grad()
    def fill(self, model: Decoder) -> None:
        """Takes over the weights of `model`, of the same configuration. Raises ModelError."""
        if model.config != self.config:
            raise ModelError("The new weights belong to a model of another configuration.")
        check_finite(model.named_parameters())  # before anything is written
        self._fill(model, {})

    def _fill(self, model: Decoder, blocks: Mapping[str, Blocks]) -> None:
        for name, (_, matrix, bias) in self._plan(model).items():
            fill(
                self._packed[name], matrix, bias, blocks[_parameter(name)].data if _parameter(name) in blocks else None
            )
        check_finite(_gains(model).items())
        for name, gain in _gains(model).items():
            self._gains[name][: len(gain)] = gain.float().numpy()

    def _plan(self, model: Decoder) -> dict[str, Planned]:
        """Number format, weight and bias of each matrix, by name."""
        parameters = dict(model.named_parameters())
        parts = [f"{number}.{part}" for number in range(self.config.n_layers) for part in _PARTS]
        plan: dict[str, Planned] = {}
        for name in (*_TABLES, *parts):
            if (place := _parameter(name)) in parameters:
                kind = KINDS[self.form]
                kind = self._blocks.get(place, INT8 if name in _TABLES and kind > INT8 else kind)
                bias = parameters.get(place.removesuffix("weight") + "bias") if name in parts else None
                plan[name] = kind, parameters[place].detach(), bias
        return plan

    def _describe(self) -> library.Model:
        config, attention = self.config, self.config.layers[0].attention
        mlp = config.layers[0].mlp
        assert isinstance(attention, AttentionConfig)
        assert isinstance(mlp, MlpConfig)
        assert config.norm is not None
        for number, layer in enumerate(config.layers):
            found = self._layers[number]
            for name in _PARTS:
                setattr(found, name, self._packed[f"{number}.{name}"].matrix)
            for name in _NORMS:
                gain = self._gains.get(f"{number}.{name}")
                setattr(found, name, None if gain is None else gain.ctypes.data)
            assert isinstance(layer.attention, AttentionConfig)
            found.epsilon = layer.norm.epsilon
            found.window, found.turned = layer.attention.window or 0, layer.attention.rotary_dim
        embedding = self._packed["embedding"].matrix
        scale = attention.head_dim**-0.5 if attention.scale is None else attention.scale
        return library.Model(
            embedding, self._packed["head"].matrix if "head" in self._packed else embedding, self._layers,
            self._gains["norm"].ctypes.data, config.norm.epsilon, scale, config.d_model, mlp.d_ff, config.n_layers,
            attention.n_heads, attention.n_kv_heads, attention.head_dim, config.vocab_size, CACHES.index(self.cache),
            config.max_seq_len, self.wide,
        )  # fmt: skip


def _parameter(name: str) -> str:
    """Of the model, for one of our matrices."""
    if name in _TABLES:
        return _TABLES[name]
    number, part = name.split(".")
    return f"blocks.{number}.{_PARTS[part]}.weight"


def _gains(model: Decoder) -> dict[str, Tensor]:
    assert isinstance(model.norm, RMSNorm)
    gains = {"norm": model.norm.weight.detach()}
    for number, block in enumerate(model.blocks):
        for name, place in _NORMS.items():
            if isinstance(norm := block.get_submodule(place), RMSNorm):
                gains[f"{number}.{name}"] = norm.weight.detach()
    return gains


def _sides(matrix: Tensor) -> tuple[int, int]:
    rows, columns = matrix.shape
    return rows, columns


def _zeros_behind(size: int) -> np.ndarray:
    return np.zeros(padded(size, GROUP), dtype=np.float32)
