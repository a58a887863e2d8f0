"""The last stage: everything that is measured about the three models, once, on text and problems they have never
seen.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from itertools import islice
from typing import Any

import numpy as np

from athanor.alignment.conversations import sft_evaluation
from athanor.base.progress import progress, say
from athanor.base.randomness import subseed
from athanor.base.run import Stage
from athanor.corpus.shards import Shards
from athanor.engine.language_model import LanguageModel
from athanor.engine.sampling import Sampling
from athanor.environments import ENVIRONMENTS, distinct_held_out
from athanor.evaluation.baselines import consumed, kneser_ney_bits_per_byte
from athanor.evaluation.bits_per_byte import (
    HeldOut,
    bits_per_byte,
    document_nats,
    grouped_bits_per_byte,
    sample_held_out,
)
from athanor.evaluation.problems import compare_pass_rates, count_correct, examine, proportion
from athanor.models.decoder import Decoder
from athanor.models.folder import load_decoder
from athanor.pipeline.data_stages import load_tokenizer
from athanor.pipeline.life import Life, Work
from athanor.pipeline.plans import EvaluationPlan, PretrainPlan, RlPlan
from athanor.pipeline.probing import USUAL_PROBLEMS, by_environment
from athanor.pipeline.samples import COMPLETIONS, held_conversations
from athanor.pipeline.stage_batches import open_text, text_batches
from athanor.tokenizer import Tokenizer

_CHATS = (
    ("en", ("Who are you?",)),
    ("en", ("Hello!", "Spell the word river.")),
    ("en", ("What is 3+4?", "Thank you.")),
    ("en", ("What is photosynthesis?",)),
    ("zh", ("你是谁？",)),
    ("zh", ("你好！", "2加5等于多少？")),
    ("zh", ("“画蛇添足”是什么意思？",)),
)
_MOST_BASELINE_TOKENS = 20_000_000  # what a 5-gram of all text holds in about 2 GB
_HELD_OUT_SHARE_OF_TIME = 0.25  # of the evaluation's seconds, for bits per byte
_ANSWERS_SHARE_OF_TIME = 0.6
_PROBLEMS, _PER_TASK = (64, USUAL_PROBLEMS), (10, 40)  # at least, and where there is time


def evaluate_stage(
    life: Life, tokenizer: Stage, shards: Stage, base: Stage, sft: Stage, rl: Stage, control: Stage
) -> Stage:
    recipe = life.recipe.evaluate
    settings = {"recipe": recipe.model_dump(mode="json"), "seed": life.seed}
    models = {"base": base, "sft": sft, "rl": rl, "control": control}

    def work(stage: Stage) -> Work:
        encoder = load_tokenizer(tokenizer)
        loaded = {name: load_decoder(made.folder / "model", device=life.device) for name, made in models.items()}
        plan = life.plan(stage, EvaluationPlan, lambda: _plan(life, encoder, loaded, RlPlan.of(rl)))
        measured: dict[str, Any] = {}
        with progress("Evaluating", total=4, unit="part") as bar:
            for name, part in (
                ("text", lambda: _text(life, plan, shards, base, loaded)),
                ("exact_match", lambda: _exact_match(life, plan, encoder, loaded)),
                ("pass_rates", lambda: _pass_rates(life, plan, encoder, loaded, RlPlan.of(rl))),
                ("samples", lambda: _samples(life, plan, encoder, loaded)),
            ):
                measured[name] = stage.freeze(f"{name}.json", part)  # measured once, also when killed in between
                stage.beat(0)
                bar.update(1)
        return measured, [f"{name}.json" for name in measured], {}

    inputs = {name: made.output_fingerprint for name, made in models.items()}
    return life.perform("evaluate", settings, inputs | {"shards": shards.output_fingerprint}, work)


def _plan(life: Life, tokenizer: Tokenizer, models: Mapping[str, Decoder], rl_plan: RlPlan) -> EvaluationPlan:
    recipe, model = life.recipe.evaluate, models["base"]
    affordable = _affordable(life, tokenizer, models["rl"], rl_plan)
    seconds = life.seconds_left()
    tokens = recipe.held_out_tokens
    if tokens is None:
        flops = 0.4 * life.rates.fp32 * max(5.0, seconds) * _HELD_OUT_SHARE_OF_TIME
        # Three models, and half of the places are context that is not scored.
        tokens = (
            int(flops / (3 * 1.5 * model.config.flops_per_token(128, training=False)))
            if math.isfinite(flops)
            else 50_000
        )
        tokens = max(10_000, min(500_000, tokens))
    return EvaluationPlan(
        precision=life.precision_alone,
        held_out_tokens=tokens,
        problems=recipe.problems or max(_PROBLEMS[0], int(_PROBLEMS[1] * affordable)),
        samples=recipe.samples,
        per_task=recipe.per_task or max(_PER_TASK[0], int(_PER_TASK[1] * affordable)),
    )


def _affordable(life: Life, tokenizer: Tokenizer, model: Decoder, rl_plan: RlPlan) -> float:
    """Which part of the problems there is time for, at most 1: by the time that a few answers take."""
    recipe, left = life.recipe, life.seconds_left()
    if not math.isfinite(left):
        return 1.0
    problems = list(islice(distinct_held_out(*by_environment(rl_plan.cells), 0), 32))
    started = time.monotonic()
    count_correct(model, tokenizer, problems, recipe.evaluate.samples, recipe.rl.max_tokens, 0, life.precision_alone)
    answer = (time.monotonic() - started) / (len(problems) * recipe.evaluate.samples)
    # Three models answer each problem; two of them, at twice the length, a few of every task.
    answers = 3 * _PROBLEMS[1] * recipe.evaluate.samples + 2 * 2 * _PER_TASK[1] * len(ENVIRONMENTS)
    affordable = min(1.0, max(0.0, left * _ANSWERS_SHARE_OF_TIME / (answers * answer)))
    if affordable < 1:
        say(f"Evaluation: the time left suffices for {affordable:.0%} of the usual problems.")
    return affordable


def _text(
    life: Life, plan: EvaluationPlan, shards: Stage, base: Stage, models: Mapping[str, Decoder]
) -> dict[str, Any]:
    """Bits per byte of the three models and of the n-gram baselines, on the same documents."""
    held_out = sample_held_out(Shards.open(shards.folder / "heldout"), plan.held_out_tokens, life.seed)
    pretraining = PretrainPlan.of(base)
    nats = {
        name: document_nats(models[name], held_out, pretraining.length, plan.precision)
        for name in ("base", "sft", "rl")
    }
    return {
        "heldout_bits_per_byte": {
            **{name: bits_per_byte(values, held_out) for name, values in nats.items()},
            "by_source": grouped_bits_per_byte(nats, held_out, held_out.sources),
            "by_language": grouped_bits_per_byte(nats, held_out, held_out.languages),
            "tokens": held_out.n_tokens,
            "bytes": int(held_out.sizes.sum()),
        },
        "baselines": _baselines(life, shards, base, pretraining, held_out),
    }


def _baselines(life: Life, shards: Stage, base: Stage, pretraining: PretrainPlan, held_out: HeldOut) -> dict[str, Any]:
    text = open_text(shards.folder)
    vocab_size = text.index.vocab_size
    tokens, offsets = consumed(text_batches(pretraining, text, life.seed), base.metrics["steps"])
    whole = None
    if isinstance(text, Shards) and life.recipe.evaluate.all_text_baseline and text.n_tokens <= _MOST_BASELINE_TOKENS:
        whole = kneser_ney_bits_per_byte(np.asarray(text.tokens), np.asarray(text.offsets), held_out, vocab_size)
    return {
        "kneser_ney_same_tokens": kneser_ney_bits_per_byte(tokens, offsets, held_out, vocab_size),
        "kneser_ney_all_text": whole,
        "same_tokens": len(tokens),
        "all_text_tokens": text.n_tokens,
    }


def _exact_match(
    life: Life, plan: EvaluationPlan, tokenizer: Tokenizer, models: Mapping[str, Decoder]
) -> dict[str, Any]:
    problems = sft_evaluation(subseed(life.seed, "exact match"), plan.per_task)
    results = {
        name: examine(models[name], tokenizer, problems, life.recipe.rl.max_tokens * 2, plan.precision)
        for name in ("sft", "rl")
    }
    by_task = {name: result.by_task() for name, result in results.items()}
    return {
        "stop_rate": results["sft"].stop_rate(),
        "overall": {name: proportion(result.right) for name, result in results.items()},
        "exact_match": {task: {name: by_task[name][task] for name in results} for task in by_task["sft"]},
    }


def _pass_rates(
    life: Life, plan: EvaluationPlan, tokenizer: Tokenizer, models: Mapping[str, Decoder], rl_plan: RlPlan
) -> dict[str, Any]:
    """pass@1 and pass@8 before, after, and of the control, on held-out problems of the levels that were trained."""
    seed = subseed(life.seed, "pass rates")
    problems = list(islice(distinct_held_out(*by_environment(rl_plan.cells), seed), plan.problems))
    names = {"before": "sft", "after": "rl", "control": "control"}
    correct = {}
    for name, model in names.items():
        correct[name] = count_correct(
            models[model], tokenizer, problems, plan.samples, life.recipe.rl.max_tokens, seed, plan.precision
        )
    cells = [f"{p.task}, level {p.level}" for p in problems]
    by_task = {}
    for cell in sorted(set(cells)):
        chosen = np.array([c == cell for c in cells])
        by_task[cell] = {
            **{n: float(c[chosen].mean() / plan.samples) for n, c in correct.items()},
            "n": int(chosen.sum()),
        }
    return {
        "pass_at_1": compare_pass_rates(correct, plan.samples, 1, life.seed),
        "pass_at_8": compare_pass_rates(correct, plan.samples, 8, life.seed),
        "problems": len(problems),
        "samples": plan.samples,
        "by_task": by_task,
    }


def _samples(life: Life, plan: EvaluationPlan, tokenizer: Tokenizer, models: Mapping[str, Decoder]) -> dict[str, Any]:
    """What the models say, with fixed seeds: completions of the base model, chats with the final one."""
    said = Sampling(suppress_tokens=tokenizer.never_said)
    base, final = (LanguageModel(models[name], tokenizer, said, plan.precision) for name in ("base", "rl"))
    prompts = [prompt for _, prompt in COMPLETIONS]
    how = {"repetition_penalty": 1.1, "seed": life.seed}
    completions = [
        {"language": language, "stage": "base", "prompt": prompt, "text": reply.text}
        for (language, prompt), reply in zip(
            COMPLETIONS, base.generate_many(prompts, max_tokens=60, temperature=0.7, **how), strict=True
        )
    ]
    held = held_conversations(final, tokenizer, [turns for _, turns in _CHATS], max_tokens=80, temperature=0.3, **how)
    chats = [
        {"language": language, "stage": "rl", "messages": messages}
        for (language, _), messages in zip(_CHATS, held, strict=True)
    ]
    return {"completions": completions, "chats": chats}
