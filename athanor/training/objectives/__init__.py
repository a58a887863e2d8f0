"""Objectives: (model, batch) → Loss. One file each; what they ask of a head stands in `cross_entropy`."""

from athanor.training.objectives.cross_entropy import (
    head_cross_entropy,
    in_chunks,
    linear_cross_entropy,
    logprobs_and_entropies,
)
from athanor.training.objectives.denoising import denoising, prefix_language_model
from athanor.training.objectives.distillation import Distillation
from athanor.training.objectives.experts import ExpertBalance
from athanor.training.objectives.loss import Loss
from athanor.training.objectives.masked import masked_language_model
from athanor.training.objectives.next_token import next_token
from athanor.training.objectives.replaced import Electra, replaced_tokens

__all__ = [
    "Distillation", "Electra", "ExpertBalance", "Loss", "denoising", "head_cross_entropy", "in_chunks",
    "linear_cross_entropy", "logprobs_and_entropies", "masked_language_model", "next_token", "prefix_language_model",
    "replaced_tokens",
]  # fmt: skip
