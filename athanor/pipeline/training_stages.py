"""The three training stages and the control: a plan, a model, batches, and the one loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from athanor.alignment.conversations import DEFAULT_WEIGHTS, build_conversations, expand_sources, write_conversation_set
from athanor.alignment.policy import policy_objective
from athanor.alignment.rollouts import RolloutConfig, RolloutSource, divergence
from athanor.base.errors import RecipeError
from athanor.base.files import expanded_path, read_json
from athanor.base.metrics import note_hyperparameters
from athanor.base.progress import progress
from athanor.base.randomness import subseed
from athanor.base.run import Stage, damaged
from athanor.corpus.shards import Shards
from athanor.models.build import count_parameters
from athanor.models.config import ModelConfig
from athanor.models.decoder import Decoder
from athanor.models.folder import load_decoder, save_model
from athanor.pipeline.data_stages import load_tokenizer, state_of
from athanor.pipeline.life import Life, Work
from athanor.pipeline.parts import Parts, Task
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
from athanor.pipeline.recipe import TeacherRecipe, TrainingRecipe
from athanor.pipeline.samples import answered, continued
from athanor.pipeline.stage_batches import conversation_batches, open_text
from athanor.pipeline.together import loop_config, parts_for_all
from athanor.tokenizer import Tokenizer
from athanor.training.loop import LoopConfig, Outcome, Trainer
from athanor.training.objectives import next_token
from athanor.training.pretraining import Learnt

_GENERATION = {"do_sample": True, "temperature": 0.7, "top_p": 0.95, "repetition_penalty": 1.1}


def pretrain_stage(life: Life, tokenizer: Stage, shards: Stage) -> Stage:
    settings = {**settings_of(life, "pretrain"), "model": life.recipe.model.model_dump(mode="json")}

    def work(stage: Stage) -> Work:
        encoder = load_tokenizer(tokenizer)
        text = open_text(shards.folder)
        here = isinstance(text, Shards)
        plan = life.plan(
            stage, PretrainPlan, lambda: plan_pretraining(life, encoder.vocab_size, text.n_tokens, countable=here)
        )
        check_vocabulary(plan, encoder)
        check_that_it_fits(life, plan.model, plan, together=True)
        task = task_of(life, stage, plan, tokenizer, shards)
        parts = parts_for_all(task, life.group)
        stage.beat()
        write = continued(encoder, plan.precision, life.seed)
        outcome, model = train(life, stage, plan, parts, "Pre-training", task, write=write)
        return _finish(life, stage, model, encoder, outcome, plan, "base", {})

    inputs = {"shards": shards.output_fingerprint, "tokenizer": tokenizer.output_fingerprint}
    return life.perform("pretrain", settings, inputs, work)


def check_vocabulary(plan: PretrainPlan, tokenizer: Tokenizer) -> None:
    """Raises RecipeError for a plan that was made for other text."""
    if plan.model.vocab_size != tokenizer.vocab_size:
        raise RecipeError(
            f"The plan's model has vocab_size = {plan.model.vocab_size}, the tokenizer of this text "
            f"{tokenizer.vocab_size}.",
            "A plan repeats a run on the text that it was made for.",
        )


def sft_stage(life: Life, tokenizer: Stage, base: Stage) -> Stage:
    recipe = life.recipe.sft
    settings = {**settings_of(life, "sft"), "weights": recipe.weights or DEFAULT_WEIGHTS}

    def work(stage: Stage) -> Work:
        encoder = load_tokenizer(tokenizer)
        config = PretrainPlan.of(base).model
        counts = _prepare_conversations(life, stage)
        plan = life.plan(stage, SupervisedPlan, lambda: plan_finetuning(life, config, stage.seconds))
        check_that_it_fits(life, config, plan, together=True)
        task = task_of(life, stage, plan, tokenizer, base)
        parts = parts_for_all(task, life.group)
        stage.beat()
        write = answered(encoder, plan.precision, life.seed)
        outcome, model = train(life, stage, plan, parts, "Supervised fine-tuning", task, write=write)
        more = {"conversations": {**counts, "too_long": parts.left_out}}
        metrics, outputs, timing = _finish(life, stage, model, encoder, outcome, plan, "sft", more)
        return metrics, [*outputs, "conversations"], timing  # the control reads them too

    own = [expanded_path(name) for name in expand_sources(recipe.sources) if name.endswith(".jsonl")]
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


def rl_stage(life: Life, tokenizer: Stage, sft: Stage) -> Stage:
    recipe = life.recipe.rl
    settings = {**settings_of(life, "rl"), "problems": life.recipe.evaluate.problems}

    def work(stage: Stage) -> Work:
        encoder = load_tokenizer(tokenizer)
        model, start = (load_decoder(sft.folder / "model", device=life.device) for _ in range(2))
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
        policy = Learnt(policy_objective(recipe.loss, recipe.clip_ratio))
        parts = Parts(model, source, policy, divergence(source, start))
        # Its loss is about zero whatever the policy is worth, and has outliers by nature: none of them is a spike.
        outcome, _ = train(life, stage, plan, parts, "Reinforcement learning", spike_deviations=0.0)
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
        source, _ = conversation_batches(sft.folder / "conversations", encoder, plan, life.seed)
        for _ in range(sft.metrics["steps"]):
            source.next_rows()  # goes on where fine-tuning stopped
        outcome, _ = train(life, stage, plan, Parts(model, source, Learnt(next_token)), "Control")
        return _finish(life, stage, model, encoder, outcome, plan, "control", {})

    return life.perform(
        "control", {"seed": life.seed}, {"sft": sft.output_fingerprint, "rl": rl.output_fingerprint}, work
    )


def task_of(
    life: Life,
    stage: Stage,
    plan: PretrainPlan | SupervisedPlan,
    tokenizer: Stage,
    origin: Stage,
    teacher: TeacherRecipe | None = None,
) -> Task:
    """What all processes train together."""
    return Task(
        stage=stage.name,
        plan=plan,
        folder=stage.folder.resolve(),
        tokenizer=tokenizer.folder.resolve(),
        origin=origin.folder.resolve(),
        identity=stage.fingerprint,
        seed=life.seed,
        sharded=life.recipe.sharded,
        teacher=teacher,
    )


def train(
    life: Life,
    stage: Stage,
    plan: TrainingPlan,
    parts: Parts,
    description: str,
    task: Task | None = None,
    *,
    spike_deviations: float = LoopConfig.spike_deviations,
    flops_per_place: float | None = None,
    write: Callable[[Any], Mapping[str, str]] | None = None,
) -> tuple[Outcome, Any]:
    """What training came to, and the trained model. task: of what all processes train; without one this one trains
    alone. flops_per_place: where the model is no decoder.
    """
    sizes = plan.model if isinstance(plan, PretrainPlan) else parts.model.config
    seconds, group = plan.seconds, life.alone if task is None else life.group
    note_hyperparameters(life.tensorboard(stage.name), _hyperparameters(life, plan, sizes))
    trainer = Trainer(
        parts.model,
        parts.learnt.loss,
        parts.source,
        loop_config(plan, spike_deviations),
        stage.folder,
        remaining=None if seconds is None else lambda: seconds - stage.seconds,
        evaluate=parts.preview,
        write=None if group.size > 1 and life.recipe.sharded else write,  # a part of a model says nothing
        after_step=parts.learnt.after_step,
        beat=stage.beat,
        tensorboard=life.tensorboard(stage.name),
        peak_rate=life.peak_rate,
        flops_per_token=flops_per_place or sizes.flops_per_token(plan.length / 2),
        identity=stage.fingerprint,
        group=group,
        sharded=life.recipe.sharded,
    )
    outcome = trainer.run(description)
    return outcome, trainer.whole_model()


def _hyperparameters(life: Life, plan: TrainingPlan, config: ModelConfig) -> dict[str, Any]:
    """What TensorBoard's table of runs shows beside their losses."""
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
    flops = outcome.places * model.config.flops_per_token(plan.length / 2) + flops_besides
    metrics = {**metrics_of(outcome, count_parameters(model.config), flops), **more}
    save_decoder(stage.folder / "model", model, tokenizer, lineage_of(stage, kind, metrics))
    return metrics, ["model"], timing_of(life, stage, outcome, flops)


def save_decoder(folder: Path, model: Decoder, tokenizer: Tokenizer, lineage: Mapping[str, Any]) -> None:
    """The model's folder, with its tokenizer and how it is to be sampled from."""
    save_model(
        model,
        folder,
        end_of_text_id=tokenizer.end_of_text_id,
        stop_ids=tokenizer.stop_ids,
        generation={**_GENERATION, "suppress_tokens": list(tokenizer.never_said)},
        lineage=dict(lineage),
    )
    tokenizer.save(folder, max_length=model.config.max_seq_len)


def metrics_of(outcome: Outcome, parameters: int, flops: float) -> dict[str, Any]:
    """What a training stage's record says of its training."""
    return {
        "steps": outcome.steps,
        "tokens": outcome.tokens,
        "places": outcome.places,
        "skipped_steps": outcome.skipped,
        "spike_steps": outcome.spikes,
        "parameters": parameters,
        "flops": flops,
    }


def timing_of(life: Life, stage: Stage, outcome: Outcome, flops: float) -> dict[str, Any]:
    """What it says of its speed."""
    seconds = max(stage.seconds, 1e-9)
    return {
        "tokens_per_second": outcome.places / seconds,
        "share_of_peak": flops / seconds / life.peak_rate,
        "incidents": asdict(outcome.incidents),
    }


def lineage_of(stage: Stage, kind: str, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """What a model's folder says of where it comes from."""
    return {
        "made_by": f"athanor {stage.code_version}",
        "stage": kind,
        "inputs": stage.inputs,
        "settings": stage.settings,
        "metrics": dict(metrics),
    }


def settings_of(life: Life, stage: str) -> dict[str, Any]:
    """What a training stage is made from, the defaults that this version chooses included."""
    recipe: TrainingRecipe = getattr(life.recipe, stage)
    return {
        "recipe": recipe.model_dump(mode="json"),
        "optimizer": asdict(optimizer_of(life.recipe, stage)),
        "precision": life.recipe.precision,
        "seed": life.seed,
        "budget": life.recipe.budget,
    }
