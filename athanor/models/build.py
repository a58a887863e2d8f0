"""From a configuration to a module: without memory, or freshly initialised."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from torch import nn

from athanor.base.errors import ModelError
from athanor.base.randomness import generator
from athanor.models.attention import Attention, CrossAttention
from athanor.models.block import Block, Norms
from athanor.models.config import EncoderDecoderConfig, ModelConfig
from athanor.models.decoder import Decoder
from athanor.models.embedding import Embedding
from athanor.models.encoder import Encoder
from athanor.models.encoder_decoder import EncoderDecoder
from athanor.models.ngram_memory import NGramMemory
from athanor.models.norm import HeadNorm, LayerNorm, RMSNorm
from athanor.models.positions import RelativeBiasTable
from athanor.models.stack import Stack

Model = Decoder | Encoder | EncoderDecoder
Config = ModelConfig | EncoderDecoderConfig


def empty(config: Config) -> Model:
    """The module of a configuration, without memory for its weights. Raises ModelError for sizes whose product is out
    of all bounds.
    """
    try:
        with torch.device("meta"):
            if isinstance(config, EncoderDecoderConfig):
                return EncoderDecoder(config)
            return Decoder(config) if config.causal else Encoder(config)
    except (RuntimeError, OverflowError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(
            f"A model of these sizes cannot be made ({reason}).", "Is its configuration damaged?"
        ) from None


_EMBEDDING_DEVIATION = 0.8
_TIED_NORM = 0.025
_LAST = ("output.weight", "down.weight", "experts.down", "shared.down.weight")  # in an attention or feed-forward part


def initialise(model: nn.Module, seed: int) -> None:
    """Draws every weight from its own key, so that a weight depends on the seed and its name alone.

    Matrices are normal with deviation 1/√(inputs); what writes into the residual stream starts at zero, so each block
    begins as the identity (modded-nanogpt). Embeddings are large, so that a token is not drowned by what the blocks
    add; where the head shares them, the norm before it starts small instead and keeps the first logits near zero.
    Against small embeddings and a norm of one this took 4.6 % off the bits per byte of a short run (docs/lab.md).
    """
    for path, module in model.named_modules():
        for kind, parameter in module.named_parameters(recurse=False):
            if kind in ("bias", "correction") or isinstance(module, RelativeBiasTable):
                nn.init.zeros_(parameter)
            elif isinstance(module, RMSNorm | LayerNorm | HeadNorm):
                _set_gain(module, 1.0)
            else:
                inputs = parameter[0].numel() if isinstance(module, nn.Conv1d) else parameter.shape[-1]
                deviation = _EMBEDDING_DEVIATION if isinstance(module, nn.Embedding) else inputs**-0.5
                key = f"{path}.{kind}" if path else kind
                draw = generator(seed, "initialise", key).standard_normal(parameter.shape, dtype=np.float32)
                draw *= np.float32(deviation)  # in place: a large table would stand three times
                with torch.no_grad():
                    parameter.copy_(torch.from_numpy(draw))
    with torch.no_grad():
        for module in model.modules():
            _adjust(module)


def _adjust(module: nn.Module) -> None:
    """What the parts of a model need beside the usual deviations."""
    if isinstance(module, Block):
        _begin_as_identity(module.attention, module.attention_norms)
        _begin_as_identity(module.mlp, module.mlp_norms)
        if module.cross_attention is not None and module.cross_norms is not None:
            _begin_as_identity(module.cross_attention, module.cross_norms)
    elif isinstance(module, Attention | CrossAttention) and module.scale * module.config.head_dim**0.5 > 1:
        module.query.weight /= module.scale * module.config.head_dim**0.5  # T5 does not scale its scores
    elif isinstance(module, Embedding) and "tokens" in dict(module.named_children()):  # else they are another's
        module.tokens.weight /= module.config.scale
    elif isinstance(module, NGramMemory):
        nn.init.eye_(module.project.weight)
    elif isinstance(module, Decoder | Encoder | EncoderDecoder):
        _quiet_tied_head(module)
        if isinstance(module, Encoder) and module.classifier is not None:
            nn.init.zeros_(module.classifier.weight)  # no class is likelier before the first step


def _quiet_tied_head(model: Model) -> None:
    if model.head is None or not model.head.config.tied:
        return
    stack: Stack = model.decoder if isinstance(model, EncoderDecoder) else model
    candidates = (model.head.norm, stack.norm, stack.blocks[-1].mlp_norms.sum)
    last = next((norm for norm in candidates if isinstance(norm, RMSNorm | LayerNorm)), None)
    if last is not None:
        _set_gain(last, min(1.0, _TIED_NORM * stack.config.embedding.scale / model.head.config.scale))


def _begin_as_identity(part: nn.Module, norms: Norms) -> None:
    if not isinstance(norms.output, nn.Identity):  # it would blow up the noise of a part that gives almost zero
        _set_gain(norms.output, 0.0)
        return
    for name, parameter in part.named_parameters():
        if name in _LAST:
            nn.init.zeros_(parameter)


def _set_gain(norm: Any, gain: float) -> None:
    nn.init.constant_(norm.weight, gain - getattr(norm, "offset", 0.0))


def new(config: Config, seed: int = 0) -> Model:
    """A freshly initialised model in fp32."""
    model = empty(config).to_empty(device="cpu")
    initialise(model, seed)
    return model


def build(config: ModelConfig, seed: int) -> Decoder:
    """`new` where only a decoder will do."""
    model = new(config, seed)
    assert isinstance(model, Decoder)
    return model


@cache
def count_parameters(config: Config) -> int:
    """All trained numbers."""
    return sum(parameter.numel() for parameter in empty(config).parameters())
