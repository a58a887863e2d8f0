"""The three training stages and the control: a plan, a model, batches, and the one loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from athanor.alignment.conversations import DEFAULT_WEIGHTS, build_conversations, expand_sources, write_conversation_set
from athanor.alignment.messages import Conversation, read_conversations
from athanor.alignment.policy import policy_objective
from athanor.alignment.rollouts import RolloutConfig, RolloutSource, divergence
from athanor.base.errors import RecipeError
from athanor.base.files import read_json
from athanor.base.progress import progress
from athanor.base.randomness import subseed
from athanor.base.run import Stage, damaged, note_hyperparameters
from athanor.corpus.shards import Shards
from athanor.evaluation.bits_per_byte import bits_per_byte, document_nats, grouped_bits_per_byte, sample_held_out
from athanor.models.build import build, count_parameters
from athanor.models.decoder import Decoder
from athanor.models.folder import load_decoder, save_model
from athanor.models.precision import autocast
from athanor.pipeline.data_stages import load_tokenizer, state_of
from athanor.pipeline.life import Life, Work
from athanor.pipeline.planning import (
    check_that_it_fits,
    conversations,
    optimizer_of,
    plan_control,
    plan_finetuning,
    plan_pretraining,
    plan_reinforcement,
)
from athanor.pipeline.plans import PretrainPlan, RlPlan, SupervisedPlan, TrainingPlan
from athanor.pipeline.recipe import TrainingRecipe
from athanor.tokenizer import Tokenizer
from athanor.tokenizer.chat import training_example
from athanor.training.batches import DocumentPieces, MaskedSequences, PackedBatches
from athanor.training.growth import GrowingBatches
from athanor.training.loop import LoopConfig, Outcome, Trainer
from athanor.training.objectives import next_token
from athanor.training.schedules import Schedule

_GENERATION = {"do_sample": True, "temperature": 0.7, "top_p": 0.95, "repetition_penalty": 1.1}
_PREVIEW_TOKENS = 8192  # held-out ones, scored while training


def pretrain_stage(life: Life, tokenizer: Stage, shards: Stage) -> Stage:
    settings = {**_settings(life, "pretrain"), "model": life.recipe.model.model_dump(mode="json")}

    def work(stage: Stage) -> Work:
        encoder = load_tokenizer(tokenizer)
        text = Shards.open(shards.folder / "train")
        plan = life.plan(stage, PretrainPlan, lambda: plan_pretraining(life, encoder.vocab_size, text.n_tokens))
        if plan.model.vocab_size != encoder.vocab_size:
            raise RecipeError(
                f"The plan's model has vocab_size = {plan.model.vocab_size}, the tokenizer of this text "
                f"{encoder.vocab_size}.",
                "A plan repeats a run on the text that it was made for.",
            )
        check_that_it_fits(life, plan.model, plan)
        model = build(plan.model, life.seed)
        source = pretraining_batches(plan, text, life.seed)
        preview = sample_held_out(Shards.open(shards.folder / "heldout"), _PREVIEW_TOKENS, life.seed)

        def evaluate(model: Decoder) -> dict[str, float]:
            nats = document_nats(model, preview, plan.length, plan.precision)
            groups = {
                **grouped_bits_per_byte({"model": nats}, preview, preview.languages),
                **grouped_bits_per_byte({"model": nats}, preview, preview.sources),
            }
            parts = {f"bits_per_byte/{group}": values["model"] for group, values in groups.items()}
            return {"bits_per_byte": bits_per_byte(nats, preview), **parts}

        outcome = _train(life, stage, plan, model, next_token, source, "Pre-training", evaluate)
        return _finish(life, stage, model, encoder, outcome, plan, "base", {})

    inputs = {"shards": shards.output_fingerprint, "tokenizer": tokenizer.output_fingerprint}
    return life.perform("pretrain", settings, inputs, work)


def pretraining_batches(plan: PretrainPlan, text: Shards, seed: int) -> PackedBatches | GrowingBatches:
    """The stream of batches that a pre-training plan reads, from its beginning."""
    eot = text.index.end_of_text_id
    pieces = DocumentPieces(text.tokens, text.offsets, plan.length, eot)
    batches = PackedBatches(pieces, plan.rows, plan.length, subseed(seed, "pretrain"), pad_id=eot)
    if plan.rows_growth is None and plan.length_growth is None:
        return batches
    return GrowingBatches(batches, plan.expected_tokens, plan.rows_growth, plan.length_growth)


def sft_stage(life: Life, tokenizer: Stage, base: Stage) -> Stage:
    recipe = life.recipe.sft
    settings = {**_settings(life, "sft"), "weights": recipe.weights or DEFAULT_WEIGHTS}

    def work(stage: Stage) -> Work:
        encoder = load_tokenizer(tokenizer)
        model = load_decoder(base.folder / "model")
        counts = _prepare_conversations(life, stage)
        plan = life.plan(stage, SupervisedPlan, lambda: plan_finetuning(life, model.config, stage.seconds))
        check_that_it_fits(life, model.config, plan)
        source, too_long = _conversation_batches(life, stage, encoder, plan)
        evaluate = _held_out_loss(stage, encoder, plan)
        stage.beat()
        outcome = _train(life, stage, plan, model, next_token, source, "Supervised fine-tuning", evaluate)
        more = {"conversations": {**counts, "too_long": too_long}}
        metrics, outputs, timing = _finish(life, stage, model, encoder, outcome, plan, "sft", more)
        return metrics, [*outputs, "conversations"], timing  # the control reads them too

    own = [Path(name).expanduser() for name in expand_sources(recipe.sources) if name.endswith(".jsonl")]
    inputs = {
        "base": base.output_fingerprint,
        "tokenizer": tokenizer.output_fingerprint,
        "conversations": state_of(own),
    }
    return life.perform("sft", settings, inputs, work)


def _prepare_conversations(life: Life, stage: Stage) -> dict[str, Any]:
    """Writes the conversations once; a resumed stage reads them. Their number by task, and what was skipped."""
    recipe, folder = life.recipe.sft, stage.folder / "conversations"
    if not (folder / "conversations.json").exists():
        with progress("Making conversations"):
            made = build_conversations(
                recipe.sources, seed=life.seed, total=conversations(life), weights=recipe.weights or DEFAULT_WEIGHTS
            )
            write_conversation_set(folder, made)
        stage.beat()
    written = read_json(folder / "conversations.json")
    try:
        return {key: dict(written[key]) for key in ("by_task", "skipped")}
    except (KeyError, TypeError, ValueError):
        raise damaged(folder) from None


def _conversation_batches(
    life: Life, stage: Stage, tokenizer: Tokenizer, plan: SupervisedPlan
) -> tuple[PackedBatches, int]:
    """Packed training conversations, and how many are longer than a row and left out."""
    found, _ = read_conversations(stage.folder / "conversations" / "train.jsonl")
    if not found:
        raise damaged(stage.folder / "conversations")
    sequences = _render(found, tokenizer, plan.length)
    if not sequences:
        raise RecipeError(f"No conversation fits into sft.length = {plan.length} tokens.", "Make it larger.")
    seed = subseed(life.seed, "sft")
    batches = PackedBatches(MaskedSequences(sequences), plan.rows, plan.length, seed, pad_id=tokenizer.pad_id)
    return batches, len(found) - len(sequences)


def _render(found: Sequence[Conversation], tokenizer: Tokenizer, length: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Ids and loss masks of the conversations found that fit into `length` places."""
    sequences, longest = [], length * int(tokenizer.byte_lengths.max())
    with progress("Rendering conversations", total=len(found)) as bar:
        for conversation in found:
            bar.update(1)
            if sum(len(message["content"]) for message in conversation.messages) > longest:
                continue  # whatever its tokens are
            rendered = training_example(tokenizer, conversation.messages)
            if len(rendered.ids) - 1 <= length:
                sequences.append((np.array(rendered.ids, dtype=np.int32), np.array(rendered.mask)))
    return sequences


def _held_out_loss(
    stage: Stage, tokenizer: Tokenizer, plan: TrainingPlan
) -> Callable[[Decoder], dict[str, float]] | None:
    """Nats a target over a few rows of held-out conversations."""
    found, _ = read_conversations(stage.folder / "conversations" / "heldout.jsonl")
    sequences = _render(found, tokenizer, plan.length)
    if not sequences:
        return None
    rows = _PREVIEW_TOKENS // plan.length + 1
    batch = PackedBatches(MaskedSequences(sequences), rows, plan.length, 0, pad_id=tokenizer.pad_id).next()

    @torch.no_grad()
    def evaluate(model: Decoder) -> dict[str, float]:
        with autocast(plan.precision):
            loss = next_token(model, batch)
        return {"heldout_loss": float(loss.sum) / loss.count}

    return evaluate


def rl_stage(life: Life, tokenizer: Stage, sft: Stage) -> Stage:
    recipe = life.recipe.rl
    settings = {**_settings(life, "rl"), "problems": life.recipe.evaluate.problems}

    def work(stage: Stage) -> Work:
        encoder = load_tokenizer(tokenizer)
        model, start = load_decoder(sft.folder / "model"), load_decoder(sft.folder / "model")
        plan = life.plan(stage, RlPlan, lambda: plan_reinforcement(life, model, encoder, lambda: stage.seconds))
        check_that_it_fits(life, model.config, plan)
        stage.beat()
        rollouts = RolloutConfig(
            cells=plan.cells,
            prompts=recipe.prompts,
            group=recipe.group,
            max_tokens=recipe.max_tokens,
            length=plan.length,
            reward=plan.reward,
            advantage=recipe.advantage,
            aggregation=recipe.aggregation,
        )
        source = RolloutSource(model, encoder, rollouts, subseed(life.seed, "rl"), plan.precision)
        objective = policy_objective(recipe.loss, recipe.clip_ratio)
        measure = divergence(source, start)
        # Its loss is about zero whatever the policy is worth, and has outliers by nature: none of them is a spike.
        outcome = _train(
            life, stage, plan, model, objective, source, "Reinforcement learning", measure, spike_deviations=0.0
        )
        decoded = source.places_decoded
        flops = decoded * model.config.flops_per_token(plan.length / 4, training=False)
        return _finish(life, stage, model, encoder, outcome, plan, "rl", {"places_decoded": decoded}, flops)

    return life.perform("rl", settings, {"sft": sft.output_fingerprint}, work)


def control_stage(life: Life, tokenizer: Stage, sft: Stage, rl: Stage) -> Stage:
    """Supervised fine-tuning continued for as many FLOPs as reinforcement learning took, rollouts included."""

    def work(stage: Stage) -> Work:
        encoder = load_tokenizer(tokenizer)
        model = load_decoder(sft.folder / "model")
        plan = life.plan(
            stage,
            SupervisedPlan,
            lambda: plan_control(SupervisedPlan.of(sft), model.config, rl.metrics["flops"]),
        )
        check_that_it_fits(life, model.config, plan)
        source, _ = _conversation_batches(life, sft, encoder, plan)
        for _ in range(sft.metrics["steps"]):
            source.next_rows()  # goes on where fine-tuning stopped
        outcome = _train(life, stage, plan, model, next_token, source, "Control")
        return _finish(life, stage, model, encoder, outcome, plan, "control", {})

    return life.perform(
        "control", {"seed": life.seed}, {"sft": sft.output_fingerprint, "rl": rl.output_fingerprint}, work
    )


def _train(
    life: Life,
    stage: Stage,
    plan: TrainingPlan,
    model: Decoder,
    objective: Callable[..., Any],
    source: Any,
    description: str,
    evaluate: Callable[[Decoder], Mapping[str, float]] | None = None,
    spike_deviations: float = LoopConfig.spike_deviations,
) -> Outcome:
    config = LoopConfig(
        steps=plan.steps,
        micro_rows=plan.micro_rows,
        optimizer=plan.optimizer,
        schedule=Schedule(plan.warmup, plan.final, plan.schedule),
        decay_share=plan.decay_share,
        clip=plan.clip,
        precision=plan.precision,
        checkpoint_every=plan.checkpoint_every,
        evaluate_every=plan.evaluate_every,
        retention=plan.keep,
        spike_deviations=spike_deviations,
        turns=plan.turns,
        average=plan.average,
        recompute=plan.recompute,
    )
    seconds = plan.seconds
    note_hyperparameters(life.tensorboard(stage.name), _hyperparameters(life, plan, model))
    trainer = Trainer(
        model,
        objective,
        source,
        config,
        stage.folder,
        remaining=None if seconds is None else lambda: seconds - stage.seconds,
        evaluate=evaluate,
        beat=stage.beat,
        tensorboard=life.tensorboard(stage.name),
        peak_rate=life.peak_rate,
        flops_per_token=model.config.flops_per_token(plan.length / 2),
        identity=stage.fingerprint,
    )
    return trainer.run(description)


def _hyperparameters(life: Life, plan: TrainingPlan, model: Decoder) -> dict[str, Any]:
    """What TensorBoard's table of runs shows beside their losses."""
    config = model.config
    sizes = {"parameters": count_parameters(config), "d_model": config.d_model, "n_layers": config.n_layers}
    return {"seed": life.seed, **sizes, **plan.model_dump(mode="json", exclude={"model", "turns"})}


def _finish(
    life: Life,
    stage: Stage,
    model: Decoder,
    tokenizer: Tokenizer,
    outcome: Outcome,
    plan: TrainingPlan,
    kind: str,
    more: Mapping[str, Any],
    flops_besides: float = 0.0,
) -> Work:
    """Writes the model folder and says what the stage did."""
    places = outcome.places
    flops = places * model.config.flops_per_token(plan.length / 2) + flops_besides
    metrics = {
        "steps": outcome.steps,
        "tokens": outcome.tokens,
        "places": places,
        "skipped_steps": outcome.skipped,
        "spike_steps": outcome.spikes,
        "parameters": count_parameters(model.config),
        "flops": flops,
        **more,
    }
    lineage = {
        "made_by": f"athanor {stage.code_version}",
        "stage": kind,
        "inputs": stage.inputs,
        "settings": stage.settings,
        "metrics": metrics,
    }
    folder = stage.folder / "model"
    save_model(
        model,
        folder,
        end_of_text_id=tokenizer.end_of_text_id,
        stop_ids=tokenizer.stop_ids,
        generation={**_GENERATION, "suppress_tokens": list(tokenizer.never_said)},
        lineage=lineage,
    )
    tokenizer.save(folder, max_length=model.config.max_seq_len)
    seconds = max(stage.seconds, 1e-9)
    return (
        metrics,
        ["model"],
        {
            "tokens_per_second": places / seconds,
            "share_of_peak": flops / seconds / life.peak_rate,
            "incidents": asdict(outcome.incidents),
        },
    )


def _settings(life: Life, stage: str) -> dict[str, Any]:
    """What a training stage is made from, the defaults that this version chooses included."""
    recipe: TrainingRecipe = getattr(life.recipe, stage)
    return {
        "recipe": recipe.model_dump(mode="json"),
        "optimizer": asdict(optimizer_of(life.recipe, stage)),
        "precision": life.recipe.precision,
        "seed": life.seed,
        "budget": life.recipe.budget,
    }
