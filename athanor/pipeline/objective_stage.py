"""Pre-training on another objective than the next token, what it is worth on held-out text.

Such a run ends there: fine-tuning, reinforcement learning and their evaluation ask for a decoder that was trained to
continue texts.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from athanor.base.files import sha256_file
from athanor.base.progress import say
from athanor.base.run import Stage
from athanor.corpus.shards import Shards
from athanor.evaluation.objectives import objective_scores
from athanor.models.folder import save_model
from athanor.pipeline.data_stages import load_tokenizer
from athanor.pipeline.life import Life, Work
from athanor.pipeline.planning import check_that_it_fits, plan_pretraining
from athanor.pipeline.plans import PretrainPlan
from athanor.pipeline.teachers import found_teacher, teacher_folder
from athanor.pipeline.together import parts_for_all
from athanor.pipeline.training_stages import (
    check_vocabulary,
    lineage_of,
    metrics_of,
    settings_of,
    task_of,
    timing_of,
    train,
)
from athanor.tokenizer import Tokenizer, control
from athanor.training.drawn import SpecialTokens
from athanor.training.objectives import Electra
from athanor.training.pretraining import OBJECTIVES


def objective_stage(life: Life, tokenizer: Stage, shards: Stage) -> Stage:
    """The pre-training stage of a run whose recipe names one of `OBJECTIVES`."""
    known = OBJECTIVES[life.recipe.pretrain.objective]
    settings = {**settings_of(life, "pretrain"), "model": life.recipe.model.model_dump(mode="json")}

    def work(stage: Stage) -> Work:
        encoder = load_tokenizer(tokenizer)
        unique = Shards.open(shards.folder / "train").n_tokens
        plan = life.plan(stage, PretrainPlan, lambda: plan_pretraining(life, encoder.vocab_size, unique))
        check_vocabulary(plan, encoder)
        teacher = found_teacher(life.recipe)
        besides = _weights(life).stat().st_size if teacher else 0
        check_that_it_fits(life, plan.model, plan, known.parts, besides=besides, together=True)
        task = task_of(life, stage, plan, tokenizer, shards, teacher)
        parts = parts_for_all(task, life.group)
        flops_per_place = known.flops_per_place(plan.model, plan.length)
        outcome, model = train(life, stage, plan, parts, "Pre-training", task, flops_per_place=flops_per_place)
        model.to(life.device)
        special = SpecialTokens.of(encoder)
        scores = objective_scores(plan.objective, model, parts.source, parts.held_out, special, encoder.vocab_size)
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
        inputs["teacher"] = sha256_file(_weights(life))
    return life.perform("pretrain", settings, inputs, work)


def _weights(life: Life) -> Path:
    """The file of the teacher's."""
    return teacher_folder(life.recipe) / "model.safetensors"


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
