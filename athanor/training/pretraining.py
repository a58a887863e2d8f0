"""What a network can be pre-trained on, one row an objective: its network, its examples, its loss.

`OBJECTIVES` names them as recipes do. A pair of networks (ELECTRA, T5) is described by the configuration of the one
that `athanor.models.shapes` says; `new` makes both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from torch import nn

from athanor.base.errors import ModelError
from athanor.models.build import new
from athanor.models.config import ModelConfig
from athanor.models.moe import Router
from athanor.models.shapes import electra_generator, t5_config
from athanor.tokenizer import Tokenizer
from athanor.training.denoisers import T5, UL2, CorruptedTexts
from athanor.training.drawn import DrawnBatches, Examples, Pieces, SpecialTokens
from athanor.training.masking import MaskedPairs, MaskedTexts, Masking
from athanor.training.objectives import (
    Distillation,
    Electra,
    ExpertBalance,
    Loss,
    denoising,
    masked_language_model,
    next_token,
    prefix_language_model,
    replaced_tokens,
)
from athanor.training.parallel import ALONE, Group
from athanor.training.prefixes import Infilling, PlainTexts, PrefixTexts
from athanor.training.words import Words

_BIAS_RATE = 0.01  # what a router's bias moves a step; DeepSeek-V3's 0.001 is for a hundred times as many steps
_LEAST = 16  # tokens of a piece; a shorter one says too little


class Vocabulary:
    """What examples need to know of a tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer, self.special = tokenizer, SpecialTokens.of(tokenizer)

    @cached_property
    def words(self) -> Words:
        return Words(self.tokenizer)


@dataclass(frozen=True)
class PretrainingObjective:
    """new: (config, special tokens, seed) → what is trained; the configuration is that of `models.shapes.config_of`.
    examples: (pieces, vocabulary, seed) → Examples, which take `places` beside their piece. measured: examples of which
    the held-out ones are drawn, where those are others.

    loss: what held-out text is measured by; and learnt by, but for experts, whose balance is part of it, and for a
    student, who learns from a teacher: `learnt`.

    headed: about what part of the places goes through a head over the vocabulary. parts: memory, and cost: time, as
    multiples of those of a decoder of the configuration's sizes.
    """

    new: Callable[[ModelConfig, SpecialTokens, int], nn.Module]
    examples: Callable[[Pieces, Vocabulary, int], Examples]
    loss: Callable[[Any, Any], Loss]
    places: int
    headed: float = 1.0
    parts: float = 1.0
    cost: float = 1.0
    measured: Callable[[Pieces, Vocabulary, int], Examples] | None = None

    def batches(
        self,
        tokens: np.ndarray,
        offsets: np.ndarray,
        vocabulary: Vocabulary,
        rows: int,
        length: int,
        seed: int,
        *,
        held_out: bool = False,
    ) -> DrawnBatches:
        """The stream of batches of rows × length places. tokens, offsets: as in shards."""
        pieces = Pieces(tokens, offsets, length - self.places, _LEAST)
        draw = self.measured if held_out and self.measured else self.examples
        return DrawnBatches(draw(pieces, vocabulary, seed), rows, length, seed)

    def flops_per_place(self, config: ModelConfig, length: int) -> float:
        """Of training, estimated: the head's share of the places is counted, and another network by `cost`."""
        context = length / 2 if config.causal else length
        head = 6.0 * config.vocab_size * config.d_model if config.head and not config.head.outputs else 0.0
        return self.cost * (config.flops_per_token(context) - (1 - self.headed) * head)


def _network(config: ModelConfig, special: SpecialTokens, seed: int) -> nn.Module:
    return new(config, seed)


def _electra(config: ModelConfig, special: SpecialTokens, seed: int) -> nn.Module:
    return Electra.new(electra_generator(config), config, seed)


def _t5(config: ModelConfig, special: SpecialTokens, seed: int) -> nn.Module:
    return new(t5_config(config, special.end), seed)


def _corrupted(denoisers: Any) -> Callable[[Pieces, Vocabulary, int], Examples]:
    return lambda pieces, v, seed: CorruptedTexts(pieces, v.special, denoisers, v.special.end, seed)


@dataclass(frozen=True)
class Learnt:
    """What one training learns: a loss, and what is done after each step."""

    loss: Callable[[Any, Any], Loss]
    after_step: Callable[[Any, bool], None] | None = None


def learnt(objective: str, model: nn.Module, teacher: Distillation | None = None, group: Group = ALONE) -> Learnt:
    """What `model` learns. teacher: of the objective "distilled". group: that trains the model."""
    if objective == "distilled":
        if teacher is None:
            raise ModelError("There is no teacher to learn from.", "Give one, or take the objective next_token.")
        return Learnt(teacher)
    if objective != "experts":
        return Learnt(OBJECTIVES[objective].loss)
    biased = any(isinstance(part, Router) and part.correction is not None for part in model.modules())
    if not biased:
        return Learnt(ExpertBalance(model, next_token))
    balance = ExpertBalance(model, next_token, auxiliary=0.0, z=0.0, bias_rate=_BIAS_RATE, group=group)
    return Learnt(balance, balance.after_step)


_ALWAYS_HIDDEN = Masking(masked=1.0, replaced=0.0)

OBJECTIVES: Mapping[str, PretrainingObjective] = {
    "masked": PretrainingObjective(
        _network, lambda pieces, v, seed: MaskedTexts(pieces, v.special, Masking(), seed),
        masked_language_model, places=2, headed=0.15,
    ),
    "masked_pairs": PretrainingObjective(
        _network,
        lambda pieces, v, seed: MaskedPairs(pieces, v.special, Masking(v.words), v.words, seed),
        masked_language_model, places=3, headed=0.15,
    ),
    "replaced": PretrainingObjective(
        _electra, lambda pieces, v, seed: MaskedTexts(pieces, v.special, _ALWAYS_HIDDEN, seed),
        replaced_tokens, places=2, headed=0.15, parts=1.5, cost=1.5,
    ),
    "spans": PretrainingObjective(_t5, _corrupted(T5), denoising, places=2, headed=0.2, parts=2.0),
    "ul2": PretrainingObjective(_t5, _corrupted(UL2), denoising, places=2, headed=0.3, parts=2.0),
    "prefix": PretrainingObjective(
        _network, lambda pieces, v, seed: PrefixTexts(pieces, v.special, seed),
        prefix_language_model, places=1, headed=0.5,
    ),
    "infilling": PretrainingObjective(
        _network, lambda pieces, v, seed: Infilling(pieces, v.special, seed), next_token, places=4,
        measured=lambda pieces, v, seed: Infilling(pieces, v.special, seed, rate=1.0),
    ),
    "experts": PretrainingObjective(
        _network, lambda pieces, v, seed: PlainTexts(pieces, v.special), next_token, places=1, cost=1.3,
    ),
    "distilled": PretrainingObjective(
        _network, lambda pieces, v, seed: PlainTexts(pieces, v.special), next_token, places=1, parts=1.5, cost=1.5,
    ),
}  # fmt: skip
