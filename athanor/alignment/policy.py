"""Policy optimisation with verifiable rewards: rollouts become batches, and advantages × policy loss × aggregation its
loss.

Every algorithm of the GRPO family is one row of three small registries (align with verl's decomposition). The default
is the plain one that is right on-policy: R − mean (Dr. GRPO, Liu et al. 2025), the clipped ratio of PPO, and the mean
over all tokens (DAPO, Yu et al. 2025); no KL term. The stop token that was sampled is trained like any other token.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from athanor.base.errors import AthanorError
from athanor.models.decoder import Decoder
from athanor.training.batches import IGNORED, Batch, lay_out, pack, rows_at
from athanor.training.objectives import Loss, logprobs_and_entropies


def minus_mean(rewards: np.ndarray) -> np.ndarray:
    """R − mean over the group."""
    return rewards - rewards.mean(axis=1, keepdims=True)


def standardised(rewards: np.ndarray) -> np.ndarray:
    """(R − mean) / deviation over the group, as GRPO has it (Shao et al. 2024)."""
    return minus_mean(rewards) / (rewards.std(axis=1, keepdims=True) + 1e-4)


def clipped(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, clip: tuple[float, float]) -> Tensor:
    """−min(ρA, clip(ρ)A) a token, ρ the ratio of the policy to the one that sampled (PPO, Schulman et al. 2017)."""
    ratio = (logprobs - old_logprobs).exp()
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - clip[0], 1 + clip[1]) * advantages)


def policy_gradient(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, clip: tuple[float, float]) -> Tensor:
    """−A log π a token (REINFORCE)."""
    return -advantages * logprobs


ADVANTAGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {"minus_mean": minus_mean, "standardised": standardised}
POLICY_LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor, tuple[float, float]], Tensor]] = {
    "clipped": clipped,
    "policy_gradient": policy_gradient,
}


@dataclass(frozen=True)
class Rollout:
    """One sampled answer. tokens: prompt and answer; logprobs: one an answer token, of the policy that sampled it."""

    tokens: list[int]
    logprobs: list[float]
    reward: float
    advantage: float

    @property
    def n_answer(self) -> int:
        return len(self.logprobs)


@dataclass(frozen=True)
class RolloutBatch(Batch):
    """Packed rollouts; further columns (rows, time) fp32. weights: what a token counts in the loss, by the
    aggregation.
    """

    old_logprobs: Tensor
    advantages: Tensor
    weights: Tensor


def pack_rollouts(
    rollouts: list[Rollout], length: int, pad_id: int, aggregation: str, metrics: dict[str, float]
) -> RolloutBatch:
    """Rows of `length` places; the last token of a rollout is only ever a target."""
    sizes = np.array([len(rollout.tokens) - 1 for rollout in rollouts])
    if sizes.max() > length:
        raise AthanorError(
            f"A problem with its answer takes {sizes.max()} places and does not fit into rl.length = {length}.",
            "Make rl.length larger or rl.max_tokens smaller.",
        )
    n_tokens = sum(rollout.n_answer for rollout in rollouts)

    def sequence(index: int) -> dict[str, np.ndarray]:
        rollout = rollouts[index]
        size, answer = len(rollout.tokens) - 1, rollout.n_answer
        weight = 1.0 if aggregation == "token_mean" else n_tokens / (len(rollouts) * answer)

        def behind_prompt(values: Any, before: float = 0.0) -> np.ndarray:
            return np.concatenate([np.full(size - answer, before), np.broadcast_to(values, answer)])

        return {
            "tokens": np.array(rollout.tokens[:-1]),
            "targets": behind_prompt(rollout.tokens[-answer:], IGNORED),
            "old_logprobs": behind_prompt(rollout.logprobs),
            "advantages": behind_prompt(rollout.advantage),
            "weights": behind_prompt(weight),
        }

    empty = {"tokens": pad_id, "targets": IGNORED, "old_logprobs": 0.0, "advantages": 0.0, "weights": 0.0}
    return RolloutBatch(**lay_out(pack(sizes, length), length, sequence, empty), metrics=metrics)


def policy_objective(loss: str, clip: tuple[float, float]) -> Callable[[Decoder, Any], Loss]:
    """The objective for the training loop; it also reports entropy and how far the trainer's ratio is from 1."""
    token_loss = POLICY_LOSSES[loss]

    def objective(model: Decoder, batch: RolloutBatch) -> Loss:
        hidden = model.hidden(batch.tokens, positions=batch.positions, document_ids=batch.document_ids)
        labelled = batch.targets != IGNORED
        logprobs, entropies = logprobs_and_entropies(
            model.head, model.embedding, rows_at(hidden, labelled), batch.targets[labelled]
        )
        old = batch.old_logprobs[labelled]
        losses = token_loss(logprobs, old, batch.advantages[labelled], clip) * batch.weights[labelled]
        with torch.no_grad():
            drift = ((logprobs - old).exp() - 1).abs().sum()
        return Loss(losses.sum(), len(logprobs), {"entropy": float(entropies.sum()), "ratio_drift": float(drift)})

    return objective
