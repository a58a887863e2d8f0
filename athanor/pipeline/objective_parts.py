"""What pre-training on another objective than the next token is made of, alike in every process that trains along."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from athanor.base.randomness import subseed
from athanor.corpus.shards import Shards
from athanor.evaluation.objectives import held_out_batches
from athanor.models.precision import autocast
from athanor.pipeline.plans import PretrainPlan
from athanor.pipeline.recipe import TeacherRecipe
from athanor.pipeline.teachers import taught
from athanor.tokenizer import Tokenizer
from athanor.training.batches import Batch
from athanor.training.drawn import DrawnBatches, SpecialTokens
from athanor.training.objectives import Loss
from athanor.training.parallel import Group
from athanor.training.pretraining import OBJECTIVES, Learnt, Vocabulary, learnt

_SCORED_PLACES, _PREVIEW_PLACES = 32_768, 8192  # held-out ones, at the end and while training


@dataclass(frozen=True)
class ObjectiveParts:
    """source: batches of the training text; held_out: what the result is measured on; preview: the mean loss over a
    part of these, while training.
    """

    model: Any
    source: DrawnBatches
    learnt: Learnt
    held_out: Sequence[Batch]
    preview: Callable[[Any], dict[str, float]]
    special: SpecialTokens


def objective_parts(
    plan: PretrainPlan, shards: Path, tokenizer: Tokenizer, seed: int, teacher: TeacherRecipe | None, group: Group
) -> ObjectiveParts:
    """shards: the stage's folder. teacher: of a plan that distils."""
    known, vocabulary = OBJECTIVES[plan.objective], Vocabulary(tokenizer)
    model = known.new(plan.model, vocabulary.special, seed)
    source, measured = (
        known.batches(
            text.tokens, text.offsets, vocabulary, plan.rows, plan.length, subseed(seed, "pretrain", split),
            held_out=split == "heldout",
        )
        for split, text in ((split, Shards.open(shards / split)) for split in ("train", "heldout"))
    )  # fmt: skip
    places = plan.rows * plan.length
    held_out = held_out_batches(measured, max(1, _SCORED_PLACES // places))
    return ObjectiveParts(
        model,
        source,
        learnt(plan.objective, model, (lambda: taught(teacher)) if teacher else None, group),
        held_out,
        _preview(known.loss, held_out[: max(1, _PREVIEW_PLACES // places)], plan),
        vocabulary.special,
    )


def _preview(
    objective: Callable[[Any, Any], Loss], batches: Sequence[Batch], plan: PretrainPlan
) -> Callable[[Any], dict[str, float]]:
    @torch.no_grad()
    def evaluate(model: Any) -> dict[str, float]:
        losses, device = [], next(model.parameters()).device
        for part in (part for batch in batches for part in batch.split(plan.micro_rows)):
            with autocast(plan.precision, device):
                losses.append(objective(model, part.to(device)))
        return {"heldout_loss": sum(float(loss.sum) for loss in losses) / sum(loss.count for loss in losses)}

    return evaluate
