"""The first rung for encoder–decoders: the decoder over a paged cache, beside sources that are read once.

A source is encoded whole, for its tokens see each other. What waits is encoded together (`source_reader`), but not by
encoders whose experts have a capacity: what they do with a text depends on what is beside it. The decoder's experts
have no capacity here: a text that is written token by token never fills them (Switch Transformer).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from athanor.engine.cross_attention import ReadSource, SideBySide, StepSources, kept, source_groups
from athanor.engine.rung import Cache, Segment, check_finite
from athanor.engine.source_reader import Ids, SourceReader, reads_together
from athanor.engine.torch_rung import TorchRung, in_fp32
from athanor.models.config import ModelConfig, MoeConfig
from athanor.models.decoder import Decoder
from athanor.models.encoder_decoder import EncoderDecoder
from athanor.models.precision import autocast

if TYPE_CHECKING:
    from athanor.engine.scheduler import Answer


class SourceRung(TorchRung):
    def __init__(self, model: EncoderDecoder, precision: str = "fp32", cache: Cache = "auto") -> None:
        model = in_fp32(model) if precision == "fp32" else model
        super().__init__(decoder_of(model), precision, cache)
        check_finite(model.encoder.named_parameters())
        self._take_encoder(model)

    @torch.inference_mode()
    def encode(self, sources: Sequence[Ids]) -> list[ReadSource]:
        """What every later token of the answers sees of their sources."""
        with autocast(self.precision, self.device):
            return self._reader.read(sources) if self._reader else [self._alone(source) for source in sources]

    def _alone(self, source: Ids) -> ReadSource:
        tokens = torch.tensor([list(source)], device=self.device)
        return kept(self._whole.read(self._whole.encode(tokens)))

    def update_weights(self, model: Any) -> None:
        check_finite(model.named_parameters())  # before anything is taken
        model = in_fp32(model) if self._widens else model
        self._take(decoder_of(model))
        self._take_encoder(model)

    def _take_encoder(self, model: EncoderDecoder) -> None:
        self._whole, self._side_by_side = model, SideBySide()
        together = reads_together(model.config.encoder)
        self._reader = SourceReader(model.encoder, self._model, self._products, self._form) if together else None

    def _sources(self, segments: Sequence[Segment]) -> list[StepSources]:
        pieces, row = [], 0
        for segment in segments:
            pieces.append((row, len(segment.tokens), segment.source))
            row += len(segment.tokens)
        groups = source_groups(pieces, self._side_by_side)
        return [StepSources(layer, groups) for layer in range(self.config.n_layers)]


def read_sources(rung: SourceRung, answers: Iterable[Answer]) -> None:
    """Reads what these answers are about, where that is not done yet."""
    sources = {id(answer.source): answer.source for answer in answers if answer.source and answer.source.read is None}
    for source, read in zip(sources.values(), rung.encode([one.tokens for one in sources.values()]), strict=True):
        source.read = read


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
