"""The first rung for encoder–decoders: the decoder over a paged cache, beside sources that are read once.

A source is encoded alone and whole, for its tokens see each other; so what is kept of it depends on nothing else. The
decoder's experts have no capacity here: a text that is written token by token never fills them (Switch Transformer).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from athanor.engine.cross_attention import ReadSource, StepSources, kept
from athanor.engine.rung import Cache, Segment
from athanor.engine.torch_rung import TorchRung
from athanor.models.config import ModelConfig, MoeConfig
from athanor.models.decoder import Decoder
from athanor.models.encoder_decoder import EncoderDecoder
from athanor.models.precision import autocast


class SourceRung(TorchRung):
    def __init__(self, model: EncoderDecoder, precision: str = "fp32", cache: Cache = "auto") -> None:
        super().__init__(decoder_of(model), precision, cache)
        self._whole = model

    @torch.inference_mode()
    def encode(self, source: Sequence[int]) -> ReadSource:
        """What every later token of an answer sees of its source."""
        tokens = torch.tensor([list(source)], device=self.device)
        with autocast(self.precision, self.device):
            return kept(self._whole.read(self._whole.encode(tokens)))

    def update_weights(self, model: Any) -> None:
        super().update_weights(decoder_of(model))
        self._whole = model

    def _sources(self, segments: Sequence[Segment]) -> list[StepSources]:
        pieces, row = [], 0
        for segment in segments:
            pieces.append((row, len(segment.tokens), segment.source))
            row += len(segment.tokens)
        return [StepSources(layer, pieces) for layer in range(self.config.n_layers)]


def decoder_of(model: EncoderDecoder) -> Decoder:
    """The decoder with its head, as a module of its own with the same weights."""
    with torch.device("meta"):
        made = Decoder(_without_capacity(model.config.decoder))
    weights: dict[str, torch.Tensor] = dict(model.decoder.named_parameters())
    weights |= {f"head.{name}": parameter for name, parameter in model.head.named_parameters()}
    weights["embedding.tokens.weight"] = model.decoder.embedding.tokens.weight
    made.load_state_dict(weights, assign=True)
    return made.eval()


def _without_capacity(config: ModelConfig) -> ModelConfig:
    layers = (
        replace(layer, mlp=replace(layer.mlp, capacity=None)) if isinstance(layer.mlp, MoeConfig) else layer
        for layer in config.layers
    )
    return replace(config, layers=tuple(layers))
