"""Pre-training on another objective than the next token, what it is worth on held-out text.

Such a run ends there: fine-tuning, reinforcement learning and their evaluation ask for a decoder that was trained to
continue texts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from athanor.base.files import sha256_file
from athanor.base.progress import say
from athanor.base.randomness import subseed
from athanor.base.run import Stage
from athanor.corpus.shards import Shards
from athanor.evaluation.objectives import held_out_batches, objective_scores
from athanor.models.folder import save_model
from athanor.models.precision import autocast
from athanor.pipeline.data_stages import load_tokenizer
from athanor.pipeline.life import Life, Work
from athanor.pipeline.planning import check_that_it_fits, plan_pretraining
from athanor.pipeline.plans import PretrainPlan
from athanor.pipeline.teachers import taught, teacher_folder
from athanor.pipeline.training_stages import (
    check_vocabulary,
    lineage_of,
    metrics_of,
    settings_of,
    timing_of,
    train,
)
from athanor.tokenizer import Tokenizer, control
from athanor.training.batches import Batch
from athanor.training.objectives import Electra, Loss
from athanor.training.pretraining import OBJECTIVES, Vocabulary, learnt

_SCORED_PLACES, _PREVIEW_PLACES = 32_768, 8192  # held-out ones, at the end and while training


def objective_stage(life: Life, tokenizer: Stage, shards: Stage) -> Stage:
    """The pre-training stage of a run whose recipe names one of `OBJECTIVES`."""
    known = OBJECTIVES[life.recipe.pretrain.objective]
    settings = {**settings_of(life, "pretrain"), "model": life.recipe.model.model_dump(mode="json")}

    def work(stage: Stage) -> Work:
        encoder = load_tokenizer(tokenizer)
        texts = {split: Shards.open(shards.folder / split) for split in ("train", "heldout")}
        unique = texts["train"].n_tokens
        plan = life.plan(stage, PretrainPlan, lambda: plan_pretraining(life, encoder.vocab_size, unique))
        check_vocabulary(plan, encoder)
        check_that_it_fits(life, plan.model, plan, known.parts)
        vocabulary = Vocabulary(encoder)
        model = known.new(plan.model, vocabulary.special, life.seed)
        source, measured = (
            known.batches(
                text.tokens, text.offsets, vocabulary, plan.rows, plan.length, subseed(life.seed, "pretrain", split),
                held_out=split == "heldout",
            )
            for split, text in texts.items()
        )  # fmt: skip
        held_out = held_out_batches(measured, max(1, _SCORED_PLACES // (plan.rows * plan.length)))
        preview = _preview(known.loss, held_out[: max(1, _PREVIEW_PLACES // (plan.rows * plan.length))], plan)
        flops_per_place = known.flops_per_place(plan.model, plan.length)
        what = learnt(plan.objective, model, lambda: taught(life.recipe))
        outcome, model = train(
            life, stage, plan, model, what.loss, source, "Pre-training", preview,
            flops_per_place=flops_per_place, after_step=what.after_step,
        )  # fmt: skip
        model.to(life.device)
        scores = objective_scores(plan.objective, model, source, held_out, vocabulary.special, encoder.vocab_size)
        model.to("cpu")
        for score in scores:
            say(f"Held out, {score}.")
        flops = outcome.places * flops_per_place
        kept = model.discriminator if isinstance(model, Electra) else model
        parameters = sum(parameter.numel() for parameter in kept.parameters())
        metrics = {**metrics_of(outcome, parameters, flops), "scores": [score.as_dict() for score in scores]}
        save_with_tokenizer(stage.folder / "model", kept, encoder, plan, lineage_of(stage, "base", metrics))
        return metrics, ["model"], timing_of(life, stage, outcome, flops)

    inputs = {"shards": shards.output_fingerprint, "tokenizer": tokenizer.output_fingerprint}
    if life.recipe.pretrain.teacher is not None:
        inputs["teacher"] = sha256_file(teacher_folder(life.recipe) / "model.safetensors")
    return life.perform("pretrain", settings, inputs, work)


def _preview(
    objective: Callable[[Any, Any], Loss], batches: list[Batch], plan: PretrainPlan
) -> Callable[[Any], dict[str, float]]:
    """Mean loss over a few held-out batches."""

    @torch.no_grad()
    def evaluate(model: Any) -> dict[str, float]:
        losses, device = [], next(model.parameters()).device
        for part in (part for batch in batches for part in batch.split(plan.micro_rows)):
            with autocast(plan.precision, device):
                losses.append(objective(model, part.to(device)))
        return {"heldout_loss": sum(float(loss.sum) for loss in losses) / sum(loss.count for loss in losses)}

    return evaluate


def save_with_tokenizer(
    folder: Path, model: Any, tokenizer: Tokenizer, plan: PretrainPlan, lineage: Mapping[str, Any]
) -> None:
    """The model's folder; its tokenizer's files say what stands around a text in this kind of network."""
    end = tokenizer.end_of_text_id
    save_model(model, folder, end_of_text_id=end, stop_ids=(end,), lineage=dict(lineage))
    length = plan.model.max_seq_len
    if not plan.model.causal:
        tokenizer.save(folder, length, before=control.CLASSIFY, after=control.SEPARATE)
    elif plan.objective in ("spans", "ul2"):
        tokenizer.save(folder, length, after=control.END_OF_TEXT)
    else:
        tokenizer.save(folder, length)
