"""Pre-training on another objective than the next token, what it is worth on held-out text, and a short report.

Such a run ends there: fine-tuning, reinforcement learning and their evaluation ask for a decoder that was trained to
continue texts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import athanor
from athanor.base.files import write_json, write_text
from athanor.base.progress import quantity, say
from athanor.base.randomness import subseed
from athanor.base.run import Stage
from athanor.corpus.shards import Shards
from athanor.evaluation.objectives import Score, held_out_batches, objective_scores
from athanor.models.folder import save_model
from athanor.models.precision import autocast
from athanor.pipeline.data_stages import load_tokenizer
from athanor.pipeline.life import Life, Work
from athanor.pipeline.planning import check_that_it_fits, plan_pretraining
from athanor.pipeline.plans import PretrainPlan
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
from athanor.training.pretraining import OBJECTIVES, Vocabulary

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
        outcome = train(
            life, stage, plan, model, known.loss, source, "Pre-training", preview, flops_per_place=flops_per_place
        )
        scores = objective_scores(plan.objective, model, source, held_out, vocabulary.special, encoder.vocab_size)
        for score in scores:
            say(f"Held out, {score}.")
        flops = outcome.places * flops_per_place
        kept = model.discriminator if isinstance(model, Electra) else model
        parameters = sum(parameter.numel() for parameter in kept.parameters())
        metrics = {**metrics_of(outcome, parameters, flops), "scores": [score.as_dict() for score in scores]}
        _save(stage, kept, encoder, plan, metrics)
        return metrics, ["model"], timing_of(life, stage, outcome, flops)

    inputs = {"shards": shards.output_fingerprint, "tokenizer": tokenizer.output_fingerprint}
    return life.perform("pretrain", settings, inputs, work)


def _preview(
    objective: Callable[[Any, Any], Loss], batches: list[Batch], plan: PretrainPlan
) -> Callable[[Any], dict[str, float]]:
    """Mean loss over a few held-out batches."""

    @torch.no_grad()
    def evaluate(model: Any) -> dict[str, float]:
        losses = []
        for part in (part for batch in batches for part in batch.split(plan.micro_rows)):
            with autocast(plan.precision):
                losses.append(objective(model, part))
        return {"heldout_loss": sum(float(loss.sum) for loss in losses) / sum(loss.count for loss in losses)}

    return evaluate


def _save(stage: Stage, model: Any, tokenizer: Tokenizer, plan: PretrainPlan, metrics: dict[str, Any]) -> None:
    """The model's folder; its tokenizer's files say what stands around a text in this kind of network."""
    folder, end = stage.folder / "model", tokenizer.end_of_text_id
    lineage = lineage_of(stage, "base", metrics)
    save_model(model, folder, end_of_text_id=end, stop_ids=(end,), lineage=lineage)
    length = plan.model.max_seq_len
    if not plan.model.causal:
        tokenizer.save(folder, length, before=control.CLASSIFY, after=control.SEPARATE)
    elif plan.objective in ("spans", "ul2"):
        tokenizer.save(folder, length, after=control.END_OF_TEXT)
    else:
        tokenizer.save(folder, length)


def objective_report(life: Life, pretrain: Stage) -> dict[str, Any]:
    """The report of a run that ends after pre-training; also written as report.json and report.md."""
    plan, metrics, timing = PretrainPlan.of(pretrain), pretrain.metrics, pretrain.record["timing"]
    stages = life.run.stages
    report = {
        "schema_version": 1,
        "athanor": athanor.__version__,
        "name": life.run.root.name,
        "seed": life.seed,
        "recipe": life.recipe.model_dump(mode="json"),
        "machine": life.machine.as_dict(),
        "objective": plan.objective,
        "family": _family(plan),
        "plan": {"pretrain": plan.model_dump(mode="json")},
        **{key: metrics[key] for key in ("parameters", "steps", "tokens", "flops", "skipped_steps", "spike_steps")},
        "scores": metrics["scores"],
        "lineage": {name: {"fingerprint": stage.fingerprint, "inputs": stage.inputs} for name, stage in stages.items()},
        "timing": {
            "seconds": life.seconds,
            "budget_seconds": life.recipe.budget_seconds,
            "stages": {name: stage.record["timing"]["seconds"] for name, stage in stages.items()},
            "tokens_per_second": timing["tokens_per_second"],
            "incidents": timing["incidents"],
        },
    }
    write_json(life.run.root / "report.json", report)
    write_text(life.run.root / "report.md", objective_markdown(report))
    return report


def _family(plan: PretrainPlan) -> str:
    return "t5" if plan.objective in ("spans", "ul2") else plan.model.family


def objective_markdown(report: dict[str, Any]) -> str:
    """report.md: what was made, and what it is worth."""
    rows = []
    for score in (Score(**values) for values in report["scores"]):
        low, high = score.gain
        rows.append(
            f"| {score.name} | {score.value:.3f} {score.unit} | {score.baseline:.3f} | {low:.3f} to {high:.3f} | "
            f"{score.n:,} |"
        )
    return "\n".join([
        f"# {report['name']}",
        "",
        f"{quantity(report['parameters'])} parameters of the family {report['family']}, pre-trained on the objective "
        f"`{report['objective']}` in {report['steps']:,} steps.",
        "",
        "| held out | value | baseline | better by (95 % interval) | n |",
        "|---|---|---|---|---|",
        *rows,
        "",
    ])  # fmt: skip
