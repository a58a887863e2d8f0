"""The three training stages and the control: plans made from the time left, then the one loop."""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from athanor.alignment.conversations import DEFAULT_WEIGHTS, build_conversations, expand_sources, write_conversation_set
from athanor.alignment.messages import read_conversations
from athanor.alignment.policy import policy_objective
from athanor.alignment.rollouts import RolloutConfig, RolloutSource, divergence
from athanor.base.errors import RecipeError
from athanor.base.progress import duration, quantity, say
from athanor.base.randomness import key
from athanor.base.run import Stage
from athanor.corpus.shards import Shards
from athanor.environments import distinct_held_out, load_environment
from athanor.evaluation.bits_per_byte import bits_per_byte, document_nats, grouped_bits_per_byte, sample_held_out
from athanor.evaluation.problems import count_correct
from athanor.models.config import AttentionConfig, MlpConfig, ModelConfig, RopeConfig
from athanor.models.decoder import Decoder, build
from athanor.models.folder import load_model, save_model
from athanor.pipeline.data_stages import CORPUS_SHARE, load_tokenizer, state_of
from athanor.pipeline.life import PRETRAIN_LENGTH, Life
from athanor.pipeline.recipe import OptimizerRecipe
from athanor.science import planner
from athanor.tokenizer import Tokenizer
from athanor.tokenizer.chat import training_example
from athanor.training.batches import DocumentPieces, MaskedSequences, PackedBatches
from athanor.training.loop import LoopConfig, Outcome, Trainer
from athanor.training.objectives import next_token
from athanor.training.optimizers import OptimizerConfig
from athanor.training.schedules import Schedule, Turn

Work = tuple[Mapping[str, Any], list[str], Mapping[str, Any]]

_CHECKPOINT_SECONDS = 30.0
_LEAST_SHARE = 0.05  # of the budget, for pre-training, however long reading took
_PREVIEW_TOKENS = 8192  # held-out tokens scored while training
_PROBED_PROBLEMS, _PROBED_SAMPLES = 12, 4
_LEAST_EXACT = 0.05  # mean pass rate below which hardly any group has a right answer to learn from
_MIXED = (0.1, 0.8)  # pass rates at which a group of eight has mixed results more often than not


def pretrain_stage(life: Life, tokenizer: Stage, shards: Stage) -> Stage:
    recipe = life.recipe.pretrain
    settings = {
        "recipe": recipe.model_dump(mode="json"),
        "model": life.recipe.model.model_dump(mode="json"),
        "precision": life.recipe.precision,
        "seed": life.seed,
        **_budget_settings(life, recipe.steps),
    }

    def work(stage: Stage) -> Work:
        encoder = load_tokenizer(tokenizer)
        text = Shards.open(shards.folder / "train")
        plan = life.plan(stage, lambda: _plan_pretraining(life, encoder, text.n_tokens))
        config = _config_from_plan(plan["model"], encoder.vocab_size)
        model = build(config, life.seed)
        source = pretraining_batches(plan, text, life.seed)
        preview = sample_held_out(Shards.open(shards.folder / "heldout"), _PREVIEW_TOKENS, life.seed)

        def evaluate(model: Decoder) -> dict[str, float]:
            nats = document_nats(model, preview, plan["length"], plan["precision"])
            groups = {
                **grouped_bits_per_byte({"model": nats}, preview, preview.languages),
                **grouped_bits_per_byte({"model": nats}, preview, preview.sources),
            }
            parts = {f"bits_per_byte/{group}": values["model"] for group, values in groups.items()}
            return {"bits_per_byte": bits_per_byte(nats, preview), **parts}

        outcome = _train(life, stage, plan, model, next_token, source, evaluate, "Pre-training")
        return _finish(life, stage, model, encoder, outcome, plan, "base", {})

    return life.perform(
        "pretrain", settings, {"shards": shards.output_fingerprint, "tokenizer": tokenizer.output_fingerprint}, work
    )


def pretraining_batches(plan: Mapping[str, Any], text: Shards, seed: int) -> PackedBatches:
    """The stream of batches that a pre-training plan reads, from its beginning."""
    eot = text.index.end_of_text_id
    pieces = DocumentPieces(text.tokens, text.offsets, plan["length"], eot)
    return PackedBatches(pieces, plan["rows"], plan["length"], key(seed, "pretrain") & 0x7FFFFFFF, pad_id=eot)


def _pretraining_seconds(life: Life) -> float:
    others = life.recipe.sft.share + life.recipe.rl.share + life.evaluation_share
    seconds = min(life.seconds_left(others), life.recipe.pretrain.share * life.seconds_left())
    return max(seconds, _LEAST_SHARE * (life.recipe.budget_seconds or 0.0))


def _choose_config(life: Life, seconds: float, unique_tokens: float) -> ModelConfig:
    if life.speed is None:
        raise ValueError("without a measured speed there is nothing to choose by")
    wanted = life.recipe.model
    length = life.recipe.pretrain.length or min(wanted.max_seq_len, PRETRAIN_LENGTH)
    vocab_size = life.recipe.tokenizer.vocab_size
    choice = planner.choose_model(
        seconds, life.speed, unique_tokens, vocab_size, wanted.max_seq_len, length, life.memory
    )
    return _with_wishes(choice.config, life)


def expectation(life: Life) -> str:
    """The plan in a sentence, before any work: what the budget is expected to buy, and when it is spent."""
    budget, recipe = life.recipe.budget_seconds, life.recipe
    if budget is None or life.speed is None:
        raise ValueError("without a budget there is nothing to expect")
    seconds = max(_LEAST_SHARE * budget, _pretraining_seconds(life) - CORPUS_SHARE * budget)
    config = _choose_config(life, seconds, math.inf)
    tokens = life.speed.tokens_per_second(config, recipe.pretrain.length or PRETRAIN_LENGTH) * seconds
    end = datetime.datetime.now() + datetime.timedelta(seconds=life.seconds_left())
    shares = {
        "reading text": CORPUS_SHARE,
        "fine-tuning": recipe.sft.share,
        "reinforcement learning": recipe.rl.share,
        "evaluation": life.evaluation_share,
    }
    others = ", ".join(f"{name} {duration(share * budget)}" for name, share in shares.items())
    return (
        f"Plan for {duration(budget)} on {life.machine.cores} cores, {life.precision} at "
        f"{life.peak_rate / 1e9:.0f} GFLOP/s: {quantity(config.parameters)} parameters, pre-training "
        f"{duration(seconds)} on about {quantity(int(tokens))} tokens; at most {others}. Done at about {end:%H:%M}."
    )


def _plan_pretraining(life: Life, tokenizer: Tokenizer, unique_tokens: int) -> dict[str, Any]:
    recipe, wanted = life.recipe.pretrain, life.recipe.model
    seconds = _pretraining_seconds(life)
    length = recipe.length or min(wanted.max_seq_len, PRETRAIN_LENGTH)
    if life.speed:
        config = _choose_config(life, seconds, unique_tokens)
        rate = life.speed.tokens_per_second(config, length)
        tokens = recipe.steps * (recipe.rows or 1) * length if recipe.steps else rate * seconds
    else:
        config, rate = _with_wishes(planner.ladder_config(256, 6, tokenizer.vocab_size, wanted.max_seq_len), life), None
        tokens = float(recipe.steps or 0) * (recipe.rows or 8) * length
    rows = recipe.rows or max(1, planner.batch_tokens(tokens) // length)
    micro = min(rows, recipe.micro_rows or planner.micro_rows(config, length, life.memory))
    step_seconds = rows * length / rate if rate else None
    plan = {
        "model": _model_plan(config),
        "precision": life.precision,
        "rows": rows,
        "length": length,
        "micro_rows": micro,
        "steps": recipe.steps,
        "seconds": max(seconds, 1.0) if recipe.steps is None else None,
        "expected_tokens": int(tokens),
        "expected_steps": recipe.steps or int(tokens / (rows * length)),
        **_loop_plan(recipe, step_seconds, OptimizerConfig(), 0.5),
    }
    say(
        f"Pre-training: {quantity(config.parameters)} parameters (d_model {config.d_model}, {config.n_layers} layers), "
        f"{plan['precision']}, about {quantity(int(tokens))} tokens in batches of {rows} × {length}"
        + (f", {duration(seconds)}." if math.isfinite(seconds) else f", {recipe.steps} steps.")
    )
    return plan


def sft_stage(life: Life, tokenizer: Stage, base: Stage) -> Stage:
    recipe = life.recipe.sft
    settings = {"recipe": recipe.model_dump(mode="json"), "seed": life.seed, **_budget_settings(life, recipe.steps)}

    def work(stage: Stage) -> Work:
        encoder = load_tokenizer(tokenizer)
        model = load_model(base.folder / "model")
        counts = _prepare_conversations(life, stage)
        plan = life.plan(stage, lambda: _plan_finetuning(life, model.config))
        source, dropped = _conversation_batches(life, stage, encoder, plan)
        stage.beat()
        outcome = _train(life, stage, plan, model.train(), next_token, source, None, "Supervised fine-tuning")
        return _finish(
            life, stage, model, encoder, outcome, plan, "sft", {"conversations": counts, "too_long": dropped}
        )

    own = [Path(name).expanduser() for name in expand_sources(recipe.sources) if name.endswith(".jsonl")]
    inputs = {
        "base": base.output_fingerprint,
        "tokenizer": tokenizer.output_fingerprint,
        "conversations": state_of(own),
    }
    return life.perform("sft", settings, inputs, work)


def _prepare_conversations(life: Life, stage: Stage) -> dict[str, int]:
    """Writes the conversations once; a resumed stage reads them."""
    recipe, folder = life.recipe.sft, stage.folder / "conversations"
    if not (folder / "conversations.json").exists():
        made = build_conversations(
            recipe.sources, seed=life.seed, total=recipe.conversations, weights=recipe.weights or DEFAULT_WEIGHTS
        )
        for missing in made.missing:
            say(f"Fine-tuning goes without a source: {missing}")
        write_conversation_set(folder, made)
        stage.beat()
    counts: dict[str, int] = {}
    for conversation in read_conversations(folder / "train.jsonl")[0]:
        counts[conversation.task] = counts.get(conversation.task, 0) + 1
    return dict(sorted(counts.items()))


def _conversation_batches(
    life: Life, stage: Stage, tokenizer: Tokenizer, plan: Mapping[str, Any]
) -> tuple[PackedBatches, int]:
    """Packed conversations, and how many are longer than a row and left out."""
    conversations, _ = read_conversations(stage.folder / "conversations" / "train.jsonl")
    sequences = []
    for conversation in conversations:
        rendered = training_example(tokenizer, conversation.messages)
        if len(rendered.ids) - 1 <= plan["length"]:
            sequences.append((np.array(rendered.ids, dtype=np.int32), np.array(rendered.mask)))
    if not sequences:
        raise RecipeError(f"No conversation fits into sft.length = {plan['length']} tokens.", "Make it larger.")
    seed = key(life.seed, "sft") & 0x7FFFFFFF
    batches = PackedBatches(MaskedSequences(sequences), plan["rows"], plan["length"], seed, pad_id=tokenizer.pad_id)
    return batches, len(conversations) - len(sequences)


def _plan_finetuning(life: Life, config: ModelConfig) -> dict[str, Any]:
    recipe = life.recipe.sft
    seconds = min(
        life.seconds_left(life.recipe.rl.share + life.evaluation_share),
        recipe.share * (life.recipe.budget_seconds or math.inf),
    )
    length = recipe.length or min(config.max_seq_len, 256)
    rows = recipe.rows or 4  # few targets a row: more, smaller updates answered better (docs/lab.md)
    micro = min(rows, recipe.micro_rows or planner.micro_rows(config, length, life.memory))
    rate = None
    if math.isfinite(seconds):
        rate = planner.measure_training(config, micro, length, life.precision, steps=1)
    if recipe.steps is not None:
        extent = f"{recipe.steps} steps"
    else:
        extent = f"{duration(max(seconds, 1.0))}, about {quantity((rate or 0.0) * seconds)} tokens"
    say(f"Fine-tuning: {life.precision}, batches of {rows} × {length}, {extent}.")
    return {
        "precision": life.precision,
        "rows": rows,
        "length": length,
        "micro_rows": micro,
        "steps": recipe.steps,
        "seconds": max(seconds, 1.0) if recipe.steps is None else None,
        **_loop_plan(recipe, rows * length / rate if rate else None, SFT_OPTIMIZER, 0.7),
    }


SFT_OPTIMIZER = OptimizerConfig(muon_lr=0.015, embedding_lr=0.06, gain_lr=0.002, weight_decay=0.0)
RL_OPTIMIZER = OptimizerConfig(muon_lr=0.003, embedding_lr=0.006, gain_lr=0.001, weight_decay=0.0)


def rl_stage(life: Life, tokenizer: Stage, sft: Stage) -> Stage:
    recipe = life.recipe.rl
    settings = {"recipe": recipe.model_dump(mode="json"), "seed": life.seed, **_budget_settings(life, recipe.steps)}

    def work(stage: Stage) -> Work:
        encoder = load_tokenizer(tokenizer)
        model, start = load_model(sft.folder / "model"), load_model(sft.folder / "model")
        plan = life.plan(stage, lambda: _plan_reinforcement(life, model, encoder))
        stage.beat()
        rollouts = RolloutConfig(
            cells=tuple((name, level) for name, level in plan["cells"]),
            prompts=recipe.prompts,
            group=recipe.group,
            max_tokens=recipe.max_tokens,
            length=plan["length"],
            reward=plan["reward"],
            advantage=recipe.advantage,
            aggregation=recipe.aggregation,
        )
        source = RolloutSource(model, encoder, rollouts, key(life.seed, "rl") & 0x7FFFFFFF, plan["precision"])
        objective = policy_objective(recipe.loss, recipe.clip_ratio)
        outcome = _train(
            life, stage, plan, model, objective, source, divergence(source, start), "Reinforcement learning"
        )
        decoded = source.places_decoded
        flops = decoded * model.config.flops_per_token(plan["length"] / 4, training=False)
        return _finish(life, stage, model, encoder, outcome, plan, "rl", {"places_decoded": decoded}, flops)

    return life.perform("rl", settings, {"sft": sft.output_fingerprint}, work)


def _plan_reinforcement(life: Life, model: Decoder, tokenizer: Tokenizer) -> dict[str, Any]:
    recipe = life.recipe.rl
    # The control that comes after has the same compute, and takes about as long.
    seconds = min(life.seconds_left(life.evaluation_share), recipe.share * (life.recipe.budget_seconds or math.inf)) / 2
    cells, reward, rates = _probe(life, model, tokenizer)
    length = recipe.length or min(model.config.max_seq_len, 256)
    say(
        "Reinforcement learning on "
        + ", ".join(f"{name} level {level} ({rate:.0%})" for (name, level), rate in rates.items())
        + f": {recipe.prompts} × {recipe.group} answers a step, "
        + (f"{recipe.steps} steps." if recipe.steps is not None else f"{duration(max(seconds, 1.0))}.")
    )
    return {
        "precision": life.precision,
        "cells": [list(cell) for cell in cells],
        "probed": {f"{name} {level}": rate for (name, level), rate in rates.items()},
        "reward": reward,
        "rows": recipe.rows,
        "length": length,
        "micro_rows": recipe.micro_rows or planner.micro_rows(model.config, length, life.memory),
        "steps": recipe.steps,
        "seconds": max(seconds, 1.0) if recipe.steps is None else None,
        **_loop_plan(recipe, 2.0 if math.isfinite(seconds) else None, RL_OPTIMIZER, 0.3),
        "evaluate_every": recipe.evaluate_every or 5,
    }


def _probe(
    life: Life, model: Decoder, tokenizer: Tokenizer
) -> tuple[list[tuple[str, int]], str, dict[tuple[str, int], float]]:
    """The (environment, level) cells to learn from, the kind of reward, and their pass rates.

    Levels are those the recipe names, else those where this very model is sometimes right. Where nothing is ever right,
    the levels nearest to it are taken with partial credit as the reward, so that answers can still differ.
    """
    recipe = life.recipe.rl
    seed = key(life.seed, "probe") & 0x7FFFFFFF
    rates: dict[tuple[str, int], float] = {}
    for name in recipe.environments:
        environment = load_environment(name)
        levels = environment.levels if recipe.levels is None else recipe.levels.get(name, [])
        for level in levels:
            problems = [environment.problem(seed, level, i, "train") for i in range(_PROBED_PROBLEMS)]
            correct = count_correct(
                model, tokenizer, problems, _PROBED_SAMPLES, recipe.max_tokens, seed, life.precision
            )
            rates[name, level] = float(correct.mean() / _PROBED_SAMPLES)
            if recipe.levels is None and rates[name, level] == 0 and level > environment.levels[0]:
                break  # harder levels will not do better
    if not rates:
        raise RecipeError(
            "rl.levels leaves no level of rl.environments.", "Name at least one level of one environment."
        )
    if recipe.levels is not None:
        chosen = rates
    else:
        chosen = {cell: rate for cell, rate in rates.items() if _MIXED[0] <= rate <= _MIXED[1]}
    if not chosen:
        best = sorted(rates, key=lambda cell: (-min(rates[cell], 1 - rates[cell]), cell))[:3]
        chosen = {cell: rates[cell] for cell in best}
    chosen = _with_enough_problems(chosen, rates, recipe.environments, life.recipe.evaluate.problems)
    reward = "exact" if _LEAST_EXACT <= float(np.mean(list(chosen.values()))) < 1 else "partial"
    return list(chosen), reward, chosen


def _with_enough_problems(
    chosen: dict[tuple[str, int], float],
    rates: Mapping[tuple[str, int], float],
    environments: Sequence[str],
    needed: int,
) -> dict[tuple[str, int], float]:
    """Adds cells, the probed ones nearest to mixed results first, until `needed` distinct held-out problems exist."""
    chosen = dict(chosen)
    probed = sorted((cell for cell in rates if cell not in chosen), key=lambda cell: (abs(rates[cell] - 0.4), cell))
    others = [(name, level) for name in environments for level in load_environment(name).levels]
    for cell in [None, *probed, *(cell for cell in others if cell not in rates)]:
        if cell is not None:
            chosen[cell] = rates.get(cell, 0.0)
        names = sorted({name for name, _ in chosen})
        levels = {name: [level for n, level in chosen if n == name] for name in names}
        if len(list(islice(distinct_held_out(names, levels, 0), needed))) == needed:
            break
    return chosen


def control_stage(life: Life, tokenizer: Stage, sft: Stage, rl: Stage) -> Stage:
    """Supervised fine-tuning continued for as many FLOPs as reinforcement learning took, rollouts included, at its peak
    rate.
    """

    def work(stage: Stage) -> Work:
        encoder = load_tokenizer(tokenizer)
        model = load_model(sft.folder / "model")

        def decide() -> dict[str, Any]:
            plan = stage_plan(sft)
            places = rl.metrics["flops"] / model.config.flops_per_token(plan["length"] / 2)
            steps = max(1, round(places / (plan["rows"] * plan["length"])))
            return {
                **plan,
                "steps": steps,
                "seconds": None,
                # Half of fine-tuning's rates: it goes on from the end of a decay.
                "optimizer": {k: v / 2 if k.endswith("_lr") else v for k, v in plan["optimizer"].items()},
                "checkpoint_every": max(1, steps // 3),
            }

        plan = life.plan(stage, decide)
        source, _ = _conversation_batches(life, sft, encoder, plan)
        source.set_position(_position_after(source, sft.metrics["steps"]))
        outcome = _train(life, stage, plan, model.train(), next_token, source, None, "Control")
        return _finish(life, stage, model, encoder, outcome, plan, "control", {})

    return life.perform(
        "control", {"seed": life.seed}, {"sft": sft.output_fingerprint, "rl": rl.output_fingerprint}, work
    )


def stage_plan(stage: Stage) -> dict[str, Any]:
    from athanor.base.files import read_json

    plan: dict[str, Any] = read_json(stage.folder / "plan.json")
    plan.pop("turns", None)
    return plan


def _position_after(source: PackedBatches, steps: int) -> dict[str, int]:
    for _ in range(steps):
        source.next_rows()
    return source.get_position()


def _train(
    life: Life,
    stage: Stage,
    plan: Mapping[str, Any],
    model: Decoder,
    objective: Callable[..., Any],
    source: Any,
    evaluate: Callable[[Decoder], Mapping[str, float]] | None,
    description: str,
) -> Outcome:
    config = LoopConfig(
        steps=plan["steps"],
        micro_rows=plan["micro_rows"],
        optimizer=OptimizerConfig.from_dict(plan["optimizer"]),
        schedule=Schedule(plan["warmup"]),
        decay_share=plan["decay_share"],
        clip=plan["clip"],
        precision=plan["precision"],
        checkpoint_every=plan["checkpoint_every"],
        evaluate_every=plan["evaluate_every"],
        turns=tuple(Turn(*turn) for turn in plan.get("turns", ())),
    )
    trainer = Trainer(
        model,
        objective,
        source,
        config,
        stage.folder,
        remaining=(lambda: plan["seconds"] - stage.seconds) if plan["seconds"] else None,
        evaluate=evaluate,
        beat=stage.beat,
        tensorboard=life.tensorboard(stage.name),
        peak_rate=life.peak_rate,
        flops_per_token=model.config.flops_per_token(plan["length"] / 2),
    )
    return trainer.run(description)


def _finish(
    life: Life,
    stage: Stage,
    model: Decoder,
    tokenizer: Tokenizer,
    outcome: Outcome,
    plan: Mapping[str, Any],
    kind: str,
    more: Mapping[str, Any],
    flops_besides: float = 0.0,
) -> Work:
    """Writes the model folder and says what the stage did."""
    places = outcome.places
    flops = places * model.config.flops_per_token(plan["length"] / 2) + flops_besides
    metrics = {
        "steps": outcome.steps,
        "tokens": outcome.tokens,
        "places": places,
        "skipped_steps": outcome.skipped,
        "parameters": model.config.parameters,
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
        generation={"do_sample": True, "temperature": 0.7, "top_p": 0.95, "repetition_penalty": 1.1},
        lineage=lineage,
    )
    tokenizer.save(folder, max_length=model.config.max_seq_len)
    seconds = max(stage.seconds, 1e-9)
    return (
        metrics,
        ["model"],
        {"tokens_per_second": places / seconds, "share_of_peak": flops / seconds / life.peak_rate},
    )


def _budget_settings(life: Life, steps: int | None) -> dict[str, Any]:
    """The budget shapes a stage only where its steps are not fixed."""
    return {} if steps is not None else {"budget": life.recipe.budget}


def _loop_plan(recipe: Any, step_seconds: float | None, default: OptimizerConfig, decay_share: float) -> dict[str, Any]:
    wishes: OptimizerRecipe = recipe.optimizer
    optimizer = {
        "muon_lr": wishes.muon_lr or default.muon_lr,
        "embedding_lr": wishes.embedding_lr or default.embedding_lr,
        "gain_lr": default.gain_lr,
        "weight_decay": default.weight_decay if wishes.weight_decay is None else wishes.weight_decay,
        "momentum": default.momentum,
        "muon_beta2": default.muon_beta2,
        "adam_betas": list(default.adam_betas),
        "adam_epsilon": default.adam_epsilon,
    }
    every = max(1, round(_CHECKPOINT_SECONDS / step_seconds)) if step_seconds else 50
    return {
        "optimizer": optimizer,
        "warmup": 10 if recipe.warmup is None else recipe.warmup,
        "decay_share": decay_share if recipe.decay_share is None else recipe.decay_share,
        "clip": recipe.clip,
        "checkpoint_every": recipe.checkpoint_every or every,
        "evaluate_every": recipe.evaluate_every or 2 * every,
    }


def _model_plan(config: ModelConfig) -> dict[str, Any]:
    return {
        "d_model": config.d_model,
        "n_layers": config.n_layers,
        "n_heads": config.attention.n_heads,
        "n_kv_heads": config.attention.n_kv_heads,
        "head_dim": config.attention.head_dim,
        "d_ff": config.mlp.d_ff,
        "max_seq_len": config.max_seq_len,
        "rope_theta": config.rope.theta,
    }


def _config_from_plan(plan: Mapping[str, Any], vocab_size: int) -> ModelConfig:
    return ModelConfig(
        vocab_size,
        plan["d_model"],
        plan["n_layers"],
        plan["max_seq_len"],
        AttentionConfig(plan["n_heads"], plan["n_kv_heads"], plan["head_dim"]),
        MlpConfig(plan["d_ff"]),
        RopeConfig(plan["rope_theta"]),
    )


def _with_wishes(planned: ModelConfig, life: Life) -> ModelConfig:
    """The planned model with whatever sizes the recipe gives."""
    wanted = life.recipe.model
    config = planned
    if wanted.d_model or wanted.n_layers:
        config = planner.ladder_config(
            wanted.d_model or planned.d_model,
            wanted.n_layers or planned.n_layers,
            planned.vocab_size,
            wanted.max_seq_len,
        )
    plan = _model_plan(config)
    for name in ("n_heads", "n_kv_heads", "head_dim", "d_ff"):
        plan[name] = getattr(wanted, name) or plan[name]
    return _config_from_plan(plan, planned.vocab_size)
