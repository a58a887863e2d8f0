"""Where policy optimisation gets its batches: problems from environments, answers from the engine, rewards from the
checkers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from athanor.alignment.policy import ADVANTAGES, Rollout, RolloutBatch, pack_rollouts
from athanor.base.randomness import generator, request_key
from athanor.engine.engine import Engine, complete
from athanor.engine.requests import Completion
from athanor.engine.sampling import AS_TRAINED
from athanor.environments import Problem, load_environment
from athanor.models.decoder import Decoder
from athanor.models.precision import autocast
from athanor.tokenizer import Tokenizer
from athanor.tokenizer.chat import render
from athanor.training.objectives import in_chunks
from athanor.training.sources import SourceEnded

_MOST_TRIES = 5  # draws of problems until one group has mixed results


@dataclass(frozen=True)
class RolloutConfig:
    """cells: the (environment, level) pairs that problems are drawn from at random. prompts: groups a batch;
    group: answers a prompt; max_tokens: of an answer; length: places of a packed row. reward: "exact", or "partial"
    credit.
    """

    cells: tuple[tuple[str, int], ...]
    prompts: int
    group: int
    max_tokens: int
    length: int
    reward: str = "exact"
    advantage: str = "minus_mean"
    aggregation: str = "token_mean"


class RolloutSource:
    """A source for the training loop: each batch is sampled from the weights as they stand.

    Rollout r of problem i at seed s is a function of (s, i, r) and the weights, so resuming repeats it exactly. Groups
    in which all rewards are equal carry no gradient; they are left out and counted.
    """

    def __init__(self, model: Decoder, tokenizer: Tokenizer, config: RolloutConfig, seed: int, precision: str) -> None:
        self.model, self.tokenizer, self.config, self.seed, self.precision = model, tokenizer, config, seed, precision
        self.stop_ids = frozenset(tokenizer.stop_ids)
        self.problems_drawn = 0
        self.places_decoded = 0
        self.last: list[Rollout] = []
        self._engine: Engine | None = None

    def get_position(self) -> dict[str, int]:
        return {"problems_drawn": self.problems_drawn, "places_decoded": self.places_decoded}

    def set_position(self, position: Mapping[str, Any]) -> None:
        self.problems_drawn, self.places_decoded = position["problems_drawn"], position["places_decoded"]

    def _draw(self) -> tuple[int, list[Problem]]:
        first = self.problems_drawn
        self.problems_drawn += self.config.prompts
        problems = []
        for number in range(first, self.problems_drawn):
            name, level = self.config.cells[int(generator(self.seed, "cell", number).integers(len(self.config.cells)))]
            problems.append(load_environment(name).problem(self.seed, level, number, "train"))
        return first, problems

    def _sample(self) -> tuple[list[list[Rollout]], np.ndarray]:
        """Groups of rollouts and their (problems, group) rewards."""
        group = self.config.group
        first, problems = self._draw()
        keys = np.array([
            request_key(self.seed, "rollout", first + i, r) for i in range(len(problems)) for r in range(group)
        ], dtype=np.uint64)  # fmt: skip
        prompts = [prompt_ids(self.tokenizer, problem) for problem in problems]
        sampling = replace(AS_TRAINED, max_tokens=self.config.max_tokens, n=group)
        answers = complete(self._current_engine(), prompts, sampling, self.stop_ids, keys)
        self.places_decoded += sum(map(len, prompts)) + sum(len(answer.tokens) for answer in answers)
        rewards = np.array([self._reward(problems[i // group], answer) for i, answer in enumerate(answers)])
        rewards = rewards.reshape(-1, group)
        advantages = ADVANTAGES[self.config.advantage](rewards).reshape(-1)
        rollouts = [
            Rollout(prompts[i // group] + answer.tokens, answer.logprobs, float(rewards.flat[i]), float(advantages[i]))
            for i, answer in enumerate(answers)
        ]
        return [rollouts[i : i + group] for i in range(0, len(rollouts), group)], rewards

    def _current_engine(self) -> Engine:
        """One engine for all batches, with the weights as they stand."""
        if self._engine is None:
            self._engine = batch_engine(self.model, self.precision)
        else:
            self._engine.update_weights(self.model)
        return self._engine

    def _reward(self, problem: Problem, answer: Completion) -> float:
        if answer.finish_reason != "stop":
            return 0.0  # right or not, it would have gone on
        environment, text = load_environment(problem.task), answer_text(self.tokenizer, answer.tokens)
        return (environment.partial if self.config.reward == "partial" else environment.reward)(problem, text)

    def next(self) -> RolloutBatch:
        """Raises SourceEnded when no group at all has mixed results, after several draws."""
        start = self.get_position()
        for _ in range(_MOST_TRIES):
            groups, rewards = self._sample()
            mixed = rewards.min(axis=1) != rewards.max(axis=1)
            if mixed.any():
                break
        else:
            self.set_position(start)  # a resumed run ends without these draws
            raise SourceEnded(
                f"none of {_MOST_TRIES * self.config.prompts} problems had both better and worse answers, the mean "
                f"reward of the last ones is {rewards.mean():.2f}. rl.environments and rl.levels choose others."
            )
        self.last = [rollout for group, kept in zip(groups, mixed, strict=True) if kept for rollout in group]
        metrics = {
            "reward": float(rewards.mean()),
            "zero_variance": float(1 - mixed.mean()),
            "length": float(np.mean([r.n_answer for group in groups for r in group])),
        }
        return pack_rollouts(self.last, self.config.length, self.tokenizer.pad_id, self.config.aggregation, metrics)


def batch_engine(model: Decoder, precision: str) -> Engine:
    """An engine for many short answers at once, where nobody waits for a single token."""
    return Engine.of(model, precision=precision, most_tokens=2048, most_running=512)


def prompt_ids(tokenizer: Tokenizer, problem: Problem) -> list[int]:
    return render(tokenizer, [{"role": "user", "content": problem.prompt}], add_generation_prompt=True).ids


def answer_text(tokenizer: Tokenizer, tokens: Sequence[int]) -> str:
    """The text before the stop token."""
    return tokenizer.decode([token for token in tokens if token not in tokenizer.stop_ids])


def divergence(source: RolloutSource, reference: Decoder) -> Callable[[Decoder], dict[str, float]]:
    """For the loop's `evaluate`: the mean KL(policy ‖ start) a token over the last batch's answers, exact over the
    vocabulary.
    """

    @torch.no_grad()
    def measure(model: Decoder) -> dict[str, float]:
        device = next(model.parameters()).device
        batch = pack_rollouts(source.last, source.config.length, source.tokenizer.pad_id, "token_mean", {}).to(device)
        labelled = batch.targets >= 0

        def states(one: Decoder) -> Tensor:
            return one.hidden(batch.tokens, positions=batch.positions, document_ids=batch.document_ids)[labelled]

        def far(own: Tensor, other: Tensor) -> Tensor:
            ours, theirs = model.logits(own).float().log_softmax(-1), reference.logits(other).float().log_softmax(-1)
            return (ours.exp() * (ours - theirs)).sum()

        with autocast(source.precision, device):
            total = in_chunks(far, states(model), states(reference))
        return {"kl": float(total) / int(labelled.sum())}

    return measure
