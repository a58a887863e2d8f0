"""Problems with exact answers: greedy exact match by task, and pass@k from samples."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from athanor.alignment.rollouts import answer_text, batch_engine, prompt_ids
from athanor.base.statistics import bootstrap_mean, pass_at_k, wilson_interval
from athanor.engine.engine import complete
from athanor.engine.requests import Completion, request_keys
from athanor.engine.sampling import AS_TRAINED, GREEDY, Sampling
from athanor.environments import Problem, score
from athanor.models.decoder import Decoder
from athanor.tokenizer import Tokenizer


@dataclass(frozen=True)
class Examined:
    """One greedy answer a problem. right: (problems,) bool; stopped: (problems,) bool, ended by a stop token."""

    problems: Sequence[Problem]
    right: np.ndarray
    stopped: np.ndarray
    texts: list[str]

    def stop_rate(self) -> dict[str, Any]:
        return proportion(self.stopped)

    def by_task(self) -> dict[str, dict[str, Any]]:
        members = defaultdict(list)
        for i, problem in enumerate(self.problems):
            members[problem.task].append(i)
        return {task: proportion(self.right[indices]) for task, indices in sorted(members.items())}


def proportion(outcomes: np.ndarray) -> dict[str, Any]:
    """Share of True with its 95 % interval."""
    low, high = wilson_interval(int(outcomes.sum()), len(outcomes))
    return {"value": float(outcomes.mean()), "ci95": [low, high], "n": len(outcomes)}


def _answers(
    model: Decoder,
    tokenizer: Tokenizer,
    problems: Sequence[Problem],
    sampling: Sampling,
    precision: str,
    samples: int = 1,
) -> list[Completion]:
    """`samples` answers a problem, in order; a prompt that leaves no room in the context gets empty ones."""
    prompts = [prompt_ids(tokenizer, problem) for problem in problems]
    fitting = [i for i, prompt in enumerate(prompts) if len(prompt) < model.config.max_seq_len]
    answers = [Completion() for _ in range(len(problems) * samples)]
    keys = request_keys(sampling.seed, len(answers))
    rows = np.array([i * samples + j for i in fitting for j in range(samples)], dtype=np.int64)
    fitting_prompts = [prompts[i] for i in fitting]
    engine, sampling = batch_engine(model, precision), replace(sampling, n=samples)
    given = complete(engine, fitting_prompts, sampling, frozenset(tokenizer.stop_ids), keys[rows])
    for row, answer in zip(rows.tolist(), given, strict=True):
        answers[row] = answer
    return answers


def examine(
    model: Decoder, tokenizer: Tokenizer, problems: Sequence[Problem], max_tokens: int, precision: str
) -> Examined:
    """Answers every problem greedily and scores it with its environment."""
    answers = _answers(model, tokenizer, problems, replace(GREEDY, max_tokens=max_tokens), precision)
    texts = [answer_text(tokenizer, answer.tokens) for answer in answers]
    stopped = np.array([answer.finish_reason == "stop" for answer in answers])
    right = np.array([score(p, t) == 1.0 for p, t in zip(problems, texts, strict=True)]) & stopped
    return Examined(problems, right, stopped, texts)


def count_correct(
    model: Decoder,
    tokenizer: Tokenizer,
    problems: Sequence[Problem],
    samples: int,
    max_tokens: int,
    seed: int,
    precision: str,
) -> np.ndarray:
    """Number of right answers among `samples` drawn at temperature 1, (problems,) int."""
    sampling = replace(AS_TRAINED, max_tokens=max_tokens, seed=seed)
    answers = _answers(model, tokenizer, problems, sampling, precision, samples)
    right = [
        a.finish_reason == "stop" and score(problems[i // samples], answer_text(tokenizer, a.tokens)) == 1.0
        for i, a in enumerate(answers)
    ]
    return np.array(right).reshape(len(problems), samples).sum(axis=1)


def compare_pass_rates(correct: dict[str, np.ndarray], samples: int, k: int, seed: int) -> dict[str, Any]:
    """pass@k before, after and of the control, and paired bootstrap intervals of the differences over problems."""
    rates = {name: pass_at_k(counts, samples, k) for name, counts in correct.items()}
    after = rates["after"]
    differences = {
        f"after_minus_{name}": list(bootstrap_mean(after - rates[name], seed)) for name in ("before", "control")
    }
    return {**{name: float(rate.mean()) for name, rate in rates.items()}, "difference_ci95": differences}
