"""From the time left and the machine to a plan for each training stage."""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from athanor.base.errors import RecipeError
from athanor.base.machine import available_memory
from athanor.base.progress import duration, quantity, say, size
from athanor.engine.native.weights import unsupported
from athanor.models.build import count_parameters
from athanor.models.config import ModelConfig
from athanor.models.decoder import Decoder
from athanor.models.ngrams import MOST_TOKENS
from athanor.models.shapes import LEARNT_POSITIONS, config_of
from athanor.pipeline.compile_probe import choose_compile
from athanor.pipeline.life import CORPUS_SHARE, PRETRAIN_LENGTH, Life
from athanor.pipeline.plans import PretrainPlan, RlPlan, SupervisedPlan, TrainingPlan
from athanor.pipeline.probing import probe
from athanor.pipeline.recipe import PretrainRecipe, Recipe, RlRecipe, TrainingRecipe
from athanor.science import planner
from athanor.tokenizer import Tokenizer
from athanor.training.checkpoints import Retention
from athanor.training.compiling import Compile
from athanor.training.kernels import training_kernels
from athanor.training.optimizers import RATES, OptimizerConfig
from athanor.training.pretraining import OBJECTIVES
from athanor.training.schedules import Growth
from athanor.training.soft_targets import TAUGHT_TOKENS

# Fine-tuning forgets less at lower rates than pre-training's; reinforcement learning only nudges. The rates
# of what the default has not keep their ratios: adam_lr to muon_lr, head_lr to embedding_lr.
OPTIMIZERS = {
    "pretrain": OptimizerConfig(),
    "sft": OptimizerConfig(
        muon_lr=0.015, embedding_lr=0.06, gain_lr=0.002, adam_lr=0.004, head_lr=0.0012, bias_lr=0.002, weight_decay=0.0
    ),
    "rl": OptimizerConfig(
        muon_lr=0.002, embedding_lr=0.004, gain_lr=0.01, adam_lr=0.0005, head_lr=8e-5, bias_lr=0.002, weight_decay=0.0
    ),
}

_HELD_OUT = {"pretrain": "bits_per_byte", "sft": "heldout_loss"}  # what the best checkpoint is chosen by
_CHECKPOINT_SECONDS = 30.0
_LEAST_SHARE = 0.05  # of the budget, for pre-training, however long reading took
_CONVERSATION_LENGTH = 256
_FEW_TOKENS = 200_000
_BATCH_BYTES = 32  # a place of a batch: four columns of int64
_CONVERSATIONS_A_SECOND = 50  # of the budget
_SMALL_POLICY = 4_000_000  # parameters: of a step of reinforcement learning sampling takes more time than learning
_CONTROL_SECONDS = 0.7  # of the control, a second of reinforcement learning: the same compute without the sampling
_COUNTING_SECONDS = 1.5e-6  # a token, for its n-grams
_COUNTING_SHARE = 0.15  # of the training, at most: at 0.4 M tokens they take 4 % off the bits per byte (docs/lab.md)
_MOST_BATCHES = 4.0  # times the smallest, up to which rates grow (docs/lab.md)
_FIXED_SIZE = (256, 6)  # d_model and layers where neither a budget nor the recipe decides


def expectation(life: Life) -> str:
    """The plan in a sentence, before any work: what the budget is expected to buy, and when it is spent."""
    budget = life.recipe.budget_seconds
    if budget is None or life.speed is None:
        raise ValueError("without a budget there is nothing to expect")
    seconds = max(_LEAST_SHARE * budget, _pretraining_seconds(life) - CORPUS_SHARE * budget)
    choice = _choose(life, seconds, math.inf, life.recipe.tokenizer.vocab_size)
    end = datetime.datetime.now() + datetime.timedelta(seconds=life.seconds_left())
    shares = {
        "reading text": CORPUS_SHARE,
        "fine-tuning": life.share("sft"),
        "reinforcement learning": life.share("rl"),
        "classification": life.classify_share,
        "evaluation": life.evaluation_share,
    }
    others = ", ".join(f"{name} {duration(share * budget)}" for name, share in shares.items() if share)
    where = f"{life.machine.cores} cores" if life.device.type == "cpu" else life.machine.accelerator
    return (
        f"Plan for {duration(budget)} on {where}, {life.precision} at "
        f"{life.peak_rate / 1e9:.0f} GFLOP/s: {quantity(count_parameters(choice.config))} parameters, pre-training "
        f"{duration(seconds)} on about {quantity(int(choice.tokens))} tokens; at most {others}. "
        f"Done at about {end:%H:%M}."
    )


def plan_pretraining(
    life: Life, vocab_size: int, unique_tokens: int, seconds: float | None = None, *, countable: bool = True
) -> PretrainPlan:
    """seconds: how long to train; by default what the budget leaves for it. countable: the text is here as a whole."""
    recipe, seconds = life.recipe.pretrain, _pretraining_seconds(life) if seconds is None else seconds
    if unique_tokens < _FEW_TOKENS:
        say(f"There are only {quantity(unique_tokens)} tokens to learn from: the model will only know them by heart.")
    length, make = _pretraining_length(life), config_of(recipe.objective)
    if life.speed:
        choice = _choose(life, seconds, unique_tokens, vocab_size)
        config, cost = choice.config, OBJECTIVES[recipe.objective].cost if recipe.objective in OBJECTIVES else 1.0
        rate, tokens = choice.tokens_per_second / cost, choice.tokens / cost
        sizes = {"d_model": config.d_model, "n_layers": config.n_layers}
    else:
        sizes, rate, tokens = dict(zip(("d_model", "n_layers"), _FIXED_SIZE, strict=True)), None, 0.0
    config = make(
        vocab_size, life.recipe.model.max_seq_len, **sizes | life.recipe.model.sizes | life.recipe.model.experts
    )
    if recipe.steps:
        tokens = planner.tokens_of(recipe.steps)
    rows = recipe.rows or max(1, planner.batch_tokens(tokens) // length)
    rows_growth = growth_of("rows", recipe.first_rows, rows)
    if recipe.steps:
        tokens = recipe.steps * rows * length / (rows_growth.stretch if rows_growth else 1.0)
    micro = min(rows, recipe.micro_rows or planner.micro_rows(config, length, life.memory, life.device))
    training = math.inf if recipe.steps else seconds
    counted = _counts_ngrams(life, tokens, unique_tokens if countable else math.inf, training)
    if config.embedding.ngrams and unique_tokens > MOST_TOKENS:
        raise _too_large("model.ngrams")
    say(
        f"Pre-training: {quantity(count_parameters(config))} parameters (d_model {config.d_model}, "
        f"{config.n_layers} layers), "
        f"{life.precision}, about {quantity(int(tokens))} tokens in batches of {rows} × {length}"
        + (f", {recipe.steps} steps" if recipe.steps else f", {duration(seconds)}")
        + (", with n-grams of the whole text as further targets" if counted else "")
        + (" and as a memory." if counted and config.embedding.ngrams else ".")
    )
    compiled: Compile = "none"
    if recipe.objective == "next_token":
        compiled = choose_compile(life, config, micro, length, seconds)
    common = _common(life, "pretrain", length, seconds, rows * length / rate if rate else None, decay_share=0.5)
    common["optimizer"] = _for_batch(common["optimizer"], recipe, rows * length)
    return PretrainPlan(
        objective=recipe.objective,
        compile=compiled,
        model=config,
        rows=rows,
        micro_rows=micro,
        expected_tokens=int(tokens),
        expected_steps=recipe.steps or int(tokens / (rows * length)),
        rows_growth=rows_growth,
        length_growth=growth_of("length", recipe.first_length, length),
        ngram_targets=counted,
        **common,
    )


def _counts_ngrams(life: Life, tokens: float, unique_tokens: float, seconds: float) -> bool:
    """Whether n-grams are targets: where the text can be counted in a small part of the time and is not read twice
    while they teach, unless the recipe says otherwise.
    """
    recipe = life.recipe.pretrain
    if recipe.ngram_targets is None:
        quick = _COUNTING_SECONDS * unique_tokens <= _COUNTING_SHARE * seconds
        new = min(tokens, TAUGHT_TOKENS) <= unique_tokens <= MOST_TOKENS
        return recipe.objective == "next_token" and quick and new
    if recipe.ngram_targets and recipe.objective != "next_token":
        raise RecipeError(
            f'pretrain.ngram_targets belong to the objective "next_token", not to "{recipe.objective}".',
            "Leave them out.",
        )
    if recipe.ngram_targets and unique_tokens > MOST_TOKENS:
        raise _too_large("pretrain.ngram_targets")
    return recipe.ngram_targets


def _too_large(setting: str) -> RecipeError:
    return RecipeError(
        f"{setting} cannot be had: the text is too large to be counted here.",
        f"Leave it out, or take at most {quantity(MOST_TOKENS)} tokens of text on this machine.",
    )


def growth_of(name: str, first: int | None, last: int) -> Growth | None:
    if first is None:
        return None
    try:
        return Growth(first, last)
    except ValueError:
        raise RecipeError(
            f"pretrain.first_{name} = {first} does not double to pretrain.{name} = {last}.",
            f"Take {last}, a half of it, a quarter, and so on; or set pretrain.{name} too.",
        ) from None


def conversations(life: Life) -> int:
    """How many conversations to make: what a short budget has no time to read need not be made."""
    wanted, budget = life.recipe.sft.conversations, life.recipe.budget_seconds
    if wanted is not None:
        return wanted
    return 30_000 if budget is None else int(min(100_000, max(5_000, _CONVERSATIONS_A_SECOND * budget)))


def plan_finetuning(life: Life, config: ModelConfig, spent: float) -> SupervisedPlan:
    """spent: seconds that the stage has taken so far; they count in its share and in its plan's seconds."""
    recipe = life.recipe.sft
    seconds = min(
        life.seconds_left(life.share("rl") + life.evaluation_share) + spent,
        life.share("sft") * (life.recipe.budget_seconds or math.inf),
    )
    length = recipe.length or min(config.max_seq_len, _CONVERSATION_LENGTH)
    rows = recipe.rows or 4  # few targets a row: more, smaller updates answered better (docs/lab.md)
    micro = min(rows, recipe.micro_rows or planner.micro_rows(config, length, life.memory, life.device))
    rate = None
    if math.isfinite(seconds):
        rate = planner.measure_training(config, micro, length, life.precision_alone, steps=1, device=life.device)
        rate *= life.group.size
    training = max(seconds - spent, 1.0)
    extent = f"{duration(training)}, about {quantity((rate or 0.0) * training)} tokens"
    say(
        f"Fine-tuning: {life.precision}, batches of {rows} × {length}, "
        + (f"{recipe.steps} steps." if recipe.steps is not None else f"{extent}.")
    )
    step_seconds = rows * length / rate if rate else None
    return SupervisedPlan(
        rows=rows, micro_rows=micro, **_common(life, "sft", length, training + spent, step_seconds, decay_share=0.7)
    )


def plan_reinforcement(life: Life, model: Decoder, tokenizer: Tokenizer, spent: Callable[[], float]) -> RlPlan:
    """spent: says the seconds that the stage has taken so far; probing takes some."""
    recipe: RlRecipe = life.recipe.rl
    difficulty = probe(life, model, tokenizer)
    seconds = min(
        life.seconds_left(life.evaluation_share) + spent(),
        life.share("rl") * (life.recipe.budget_seconds or math.inf),
    )
    training = max((seconds - spent()) / (1 + _CONTROL_SECONDS), 1.0)
    length = recipe.length or min(model.config.max_seq_len, _CONVERSATION_LENGTH)
    say(
        f"Reinforcement learning on {difficulty}: {recipe.prompts} × {recipe.group} answers a step, "
        + (f"{recipe.steps} steps." if recipe.steps is not None else f"{duration(training)}.")
    )
    common = _common(life, "rl", length, training + spent(), 2.0 if math.isfinite(seconds) else None, decay_share=0.3)
    return RlPlan(
        micro_rows=recipe.micro_rows or planner.micro_rows(model.config, length, life.memory, life.device),
        cells=tuple(difficulty.rates),
        probed={f"{name} {level}": rate for (name, level), rate in difficulty.rates.items()},
        reward=difficulty.reward,
        **common | {"evaluate_every": recipe.evaluate_every or 5, "precision": _policy_precision(life, model.config)},
    )


def _policy_precision(life: Life, config: ModelConfig) -> str:
    """A small model learns in the fp32 that the kernels sample it in, which costs no time and keeps it exactly on
    policy.
    """
    sampled_by_kernels = life.device.type == "cpu" and training_kernels() is not None and not unsupported(config)
    small = count_parameters(config) <= _SMALL_POLICY
    return "fp32" if sampled_by_kernels and small and life.recipe.precision == "auto" else life.precision_alone


def plan_control(plan: SupervisedPlan, config: ModelConfig, flops: float) -> SupervisedPlan:
    """Fine-tuning's own plan, gone on with for `flops`."""
    places = flops / config.flops_per_token(plan.length / 2)
    steps = max(1, round(places / (plan.rows * plan.length)))
    # Half of fine-tuning's rates: it goes on from the end of a decay.
    rates = {name: getattr(plan.optimizer, name) / 2 for name in RATES}
    changed = {
        "steps": steps,
        "seconds": None,
        "turns": (),
        "optimizer": replace(plan.optimizer, **rates),
        "checkpoint_every": max(1, steps // 3),
    }
    return plan.model_copy(update=changed)


def optimizer_of(recipe: Recipe, stage: str) -> OptimizerConfig:
    """The learning rates of "pretrain", "sft" or "rl": the recipe's wishes, and the defaults for the others."""
    wishes = {name: value for name, value in getattr(recipe, stage).optimizer if value is not None}
    return replace(OPTIMIZERS[stage], **wishes)


def _with_products(life: Life, stage: str) -> OptimizerConfig:
    """Muon's products are those of the model, unless the recipe wishes otherwise."""
    optimizer = optimizer_of(life.recipe, stage)
    if getattr(life.recipe, stage).optimizer.products is None and life.precision == "bf16":
        return replace(optimizer, products="bf16")
    return optimizer


def _for_batch(optimizer: OptimizerConfig, recipe: PretrainRecipe, places: int) -> OptimizerConfig:
    """The rates are said for batches of 2,048 places and follow the square root, as far as that was measured; those
    that the recipe names stay.
    """
    if recipe.objective != "next_token":
        return optimizer
    factor = min(_MOST_BATCHES, max(1.0, places / planner.LEAST_BATCH)) ** 0.5
    rates = {name: getattr(optimizer, name) * factor for name in RATES if getattr(recipe.optimizer, name) is None}
    return replace(optimizer, **rates)


def check_that_it_fits(
    life: Life,
    config: ModelConfig,
    plan: TrainingPlan,
    parts: float = 1.0,
    *,
    besides: int = 0,
    together: bool = False,
) -> None:
    """Says what memory a plan, repeated or new, needs; raises RecipeError where the machine has not that much.

    parts: networks like that of `config`. besides: bytes of what else lies whole in each process. together: by all
    processes of the group.
    """
    group = life.group if together else life.alone
    places = plan.micro_rows * plan.length
    batch = plan.rows * plan.length if isinstance(plan, SupervisedPlan) else places
    divided = group.size if life.recipe.sharded else 1
    needed = parts * planner.training_memory(config, places, plan.recompute, divided) + _BATCH_BYTES * batch + besides
    if life.device.type == "cpu":
        needed *= group.local_size
    there, free, whose = life.machine.memory, available_memory(), "this machine"
    if life.device.type == "cuda":
        free, there = torch.cuda.mem_get_info(life.device)
        whose = "the GPU"
    if needed > there > 0:
        raise RecipeError(
            f"Training {quantity(count_parameters(config))} parameters on {quantity(places)} places at a time, "
            f"{quantity(batch)} a batch, takes about {size(needed)}, and {whose} has {size(there)}.",
            'Make the model, micro_rows, rows or length smaller, or set recompute = "blocks" in the stage\'s section.',
        )
    say(f"Training takes about {size(needed)} of {whose}'s memory; {size(free)} are free.")
    if needed > free:
        say("That may not fit: end other programs, or make the model, micro_rows, rows or length smaller.")


def _pretraining_length(life: Life) -> int:
    usual = PRETRAIN_LENGTH if life.recipe.pretrain.objective not in LEARNT_POSITIONS else math.inf
    return life.recipe.pretrain.length or int(min(life.recipe.model.max_seq_len, usual))


def _pretraining_seconds(life: Life) -> float:
    others = life.share("sft") + life.share("rl") + life.classify_share + life.evaluation_share
    seconds = min(life.seconds_left(others), life.recipe.pretrain.share * life.seconds_left())
    return max(seconds, _LEAST_SHARE * (life.recipe.budget_seconds or 0.0))


def _choose(life: Life, seconds: float, unique_tokens: float, vocab_size: int) -> planner.Choice:
    if life.speed is None:
        raise ValueError("without a measured speed there is nothing to choose by")
    return planner.choose_model(
        seconds,
        life.speed,
        unique_tokens,
        vocab_size,
        life.recipe.model.max_seq_len,
        _pretraining_length(life),
        life.memory,
        life.recipe.model.sizes,
        device=life.device,
    )


def _common(
    life: Life, stage: str, length: int, seconds: float, step_seconds: float | None, *, decay_share: float
) -> dict[str, Any]:
    """The fields that all training plans decide alike: the recipe's wish, else the default."""
    recipe: TrainingRecipe = getattr(life.recipe, stage)
    keep, measure = recipe.keep, _HELD_OUT.get(stage, "") if "sft" in life.recipe.stages else "heldout_loss"
    every = max(1, round(_CHECKPOINT_SECONDS / step_seconds)) if step_seconds else 50
    return {
        "precision": life.precision,
        "length": length,
        "steps": recipe.steps,
        "seconds": seconds if recipe.steps is None else None,
        "optimizer": _with_products(life, stage),
        "warmup": 10 if recipe.warmup is None else recipe.warmup,
        "decay_share": decay_share if recipe.decay_share is None else recipe.decay_share,
        "schedule": recipe.schedule,
        "final": recipe.final,
        "average": recipe.average,
        "recompute": recipe.recompute,
        "clip": recipe.clip,
        "checkpoint_every": recipe.checkpoint_every or every,
        "evaluate_every": recipe.evaluate_every or 2 * every,
        "keep": Retention(keep.last, measure if keep.best else "", keep.every or 0, keep.most),
    }
