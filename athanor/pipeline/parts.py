"""What a stage of pre-training or fine-tuning trains: its model, its batches, what it learns, and how it is looked at.

A `Task` tells where that lies. The first process carries out the recipe; others train along, and make the same of the
same task, whose folders lie on a file system that all share.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict

from athanor.base.errors import RecipeError
from athanor.base.randomness import subseed
from athanor.corpus.shards import Shards
from athanor.evaluation.bits_per_byte import bits_per_byte, document_nats, grouped_bits_per_byte, sample_held_out
from athanor.evaluation.objectives import held_out_batches
from athanor.models.build import build
from athanor.models.decoder import Decoder
from athanor.models.folder import load_decoder
from athanor.models.precision import autocast
from athanor.pipeline.plans import PretrainPlan, SupervisedPlan, TrainingPlan
from athanor.pipeline.recipe import TeacherRecipe
from athanor.pipeline.stage_batches import (
    conversation_batches,
    give_memory,
    held_out_conversations,
    open_text,
    pretraining_batches,
)
from athanor.pipeline.teachers import taught
from athanor.tokenizer import Tokenizer
from athanor.training.batches import Batch
from athanor.training.objectives import Loss, next_token
from athanor.training.parallel import Group
from athanor.training.pretraining import OBJECTIVES, Learnt, Vocabulary, learnt

_SCORED_PLACES, _PREVIEW_PLACES = 32_768, 8192  # held-out ones, at the end and while training


class Task(BaseModel):
    """One stage's training. folder: the stage's. tokenizer: that stage's folder. origin: the folder of the stage with
    the shards, or with the model that fine-tuning begins from. teacher: of one that distils.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    stage: str
    plan: PretrainPlan | SupervisedPlan
    folder: Path
    tokenizer: Path
    origin: Path
    identity: str
    seed: int
    sharded: bool
    teacher: TeacherRecipe | None = None


@dataclass(frozen=True)
class Parts:
    """source: of batches, see `training.sources`. preview: what is measured while training. held_out: the batches that
    an objective's result is measured on. left_out: conversations that are longer than a row.
    """

    model: Any
    source: Any
    learnt: Learnt
    preview: Callable[[Any], Mapping[str, float]] | None = None
    held_out: Sequence[Batch] = ()
    left_out: int = 0


def parts_of(task: Task, group: Group) -> Parts:
    """The same in every process. Raises RecipeError where this one does not find the task's folder."""
    if not task.folder.is_dir():
        raise RecipeError(
            f"Process {group.rank} does not find {task.folder}, where the first process works.",
            "All machines must share the file system that the run lies on, under the same path.",
        )
    tokenizer = Tokenizer.load(task.tokenizer / "model")
    if not isinstance(task.plan, PretrainPlan):
        return _of_conversations(task, task.plan, tokenizer)
    if task.plan.objective == "next_token":
        return _of_text(task, task.plan)
    return _of_objective(task, task.plan, tokenizer, group)


def _of_text(task: Task, plan: PretrainPlan) -> Parts:
    model = build(plan.model, task.seed)
    source = pretraining_batches(plan, open_text(task.origin), task.seed)
    give_memory(model, source)
    return Parts(model, source, Learnt(next_token), preview_bits_per_byte(task.origin, plan, task.seed))


def _of_conversations(task: Task, plan: SupervisedPlan, tokenizer: Tokenizer) -> Parts:
    conversations = task.folder / "conversations"
    source, left_out = conversation_batches(conversations, tokenizer, plan, task.seed)
    held_out = held_out_conversations(conversations, tokenizer, plan, _PREVIEW_PLACES)
    preview = None if held_out is None else _preview_loss(next_token, [held_out], plan)
    return Parts(load_decoder(task.origin / "model"), source, Learnt(next_token), preview, left_out=left_out)


def _of_objective(task: Task, plan: PretrainPlan, tokenizer: Tokenizer, group: Group) -> Parts:
    known, vocabulary = OBJECTIVES[plan.objective], Vocabulary(tokenizer)
    model = known.new(plan.model, vocabulary.special, task.seed)
    source, measured = (
        known.batches(
            text.tokens, text.offsets, vocabulary, plan.rows, plan.length, subseed(task.seed, "pretrain", split),
            held_out=split == "heldout",
        )
        for split, text in ((split, Shards.open(task.origin / split)) for split in ("train", "heldout"))
    )  # fmt: skip
    places = plan.rows * plan.length
    held_out = held_out_batches(measured, max(1, _SCORED_PLACES // places))
    preview = _preview_loss(known.loss, held_out[: max(1, _PREVIEW_PLACES // places)], plan)
    teacher = None if task.teacher is None else taught(task.teacher)
    return Parts(model, source, learnt(plan.objective, model, teacher, group), preview, held_out)


def preview_bits_per_byte(shards: Path, plan: PretrainPlan, seed: int) -> Callable[[Decoder], dict[str, float]]:
    """Bits per byte on a little of the held-out text."""
    preview = sample_held_out(Shards.open(shards / "heldout"), _PREVIEW_PLACES, seed)

    def evaluate(model: Decoder) -> dict[str, float]:
        nats = document_nats(model, preview, plan.length, plan.precision)
        groups = {
            **grouped_bits_per_byte({"model": nats}, preview, preview.languages),
            **grouped_bits_per_byte({"model": nats}, preview, preview.sources),
        }
        parts = {f"bits_per_byte/{group}": values["model"] for group, values in groups.items()}
        return {"bits_per_byte": bits_per_byte(nats, preview), **parts}

    return evaluate


def _preview_loss(
    objective: Callable[[Any, Any], Loss], batches: Sequence[Batch], plan: TrainingPlan
) -> Callable[[Any], dict[str, float]]:
    """Nats a target over a few held-out batches."""

    @torch.no_grad()
    def evaluate(model: Any) -> dict[str, float]:
        losses, device = [], next(model.parameters()).device
        for part in (part for batch in batches for part in batch.split(plan.micro_rows)):
            with autocast(plan.precision, device):
                losses.append(objective(model, part.to(device)))
        return {"heldout_loss": sum(float(loss.sum) for loss in losses) / sum(loss.count for loss in losses)}

    return evaluate
