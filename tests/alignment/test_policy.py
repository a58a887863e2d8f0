"""Policy losses against plain loops, and packed rollouts place for place."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from athanor.alignment.policy import (
    ADVANTAGES,
    POLICY_LOSSES,
    Rollout,
    RolloutBatch,
    pack_rollouts,
    policy_objective,
)
from athanor.base.errors import AthanorError
from athanor.models.build import build
from athanor.models.config import AttentionConfig, LayerConfig, MlpConfig, ModelConfig
from athanor.models.decoder import Decoder
from athanor.training.batches import IGNORED
from athanor.training.objectives import cross_entropy

ROLLOUTS = [
    Rollout([1, 2, 3, 10, 11, 9], [-0.1, -0.2, -0.3], 1.0, 0.5),
    Rollout([4, 5, 12], [-0.4], 0.0, -0.5),
    Rollout([6, 13, 14, 15, 16, 17, 9], [-1.0, -1.1, -1.2, -1.3, -1.4, -1.5], 0.0, -1.5),
]


def tiny_model() -> Decoder:
    model = build(
        ModelConfig(20, 16, 32, (LayerConfig(AttentionConfig(2, 1, 8, qk_norm="head"), MlpConfig(24)),) * 2), 1
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(
                0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
            )
    return model


def test_advantages() -> None:
    rewards = np.array([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0]])
    assert ADVANTAGES["minus_mean"](rewards).tolist() == [[0.75, -0.25, -0.25, -0.25], [0.5, 0.5, -0.5, -0.5]]
    np.testing.assert_allclose(ADVANTAGES["standardised"](rewards)[1], [1, 1, -1, -1], rtol=1e-3)
    assert np.isfinite(ADVANTAGES["standardised"](np.ones((1, 4)))).all()


def test_losses_equal_plain_loops() -> None:
    random = np.random.default_rng(0)
    new, old, advantages = -random.exponential(1, 200), -random.exponential(1, 200), random.normal(0, 1, 200)
    low, high = 0.2, 0.28
    wanted = []
    for n, o, a in zip(new, old, advantages, strict=True):
        ratio = math.exp(n - o)
        wanted.append(-min(ratio * a, min(max(ratio, 1 - low), 1 + high) * a))
    got = POLICY_LOSSES["clipped"](*(torch.from_numpy(x) for x in (new, old, advantages)), (low, high))
    np.testing.assert_allclose(got.numpy(), wanted, rtol=1e-12)
    plain = POLICY_LOSSES["policy_gradient"](*(torch.from_numpy(x) for x in (new, old, advantages)), (low, high))
    np.testing.assert_allclose(plain.numpy(), -advantages * new)


def test_on_policy_both_losses_have_the_same_gradient() -> None:
    gradients = []
    for loss in POLICY_LOSSES.values():
        logprobs = torch.tensor([-0.5, -1.0, -2.0], requires_grad=True)
        loss(logprobs, logprobs.detach().clone(), torch.tensor([1.0, -1.0, 0.5]), (0.2, 0.2)).sum().backward()
        gradients.append(logprobs.grad)
    torch.testing.assert_close(gradients[0], gradients[1])


def test_packing_puts_everything_in_its_place_and_trains_the_stop_token() -> None:
    batch = pack_rollouts(ROLLOUTS, 8, 0, "token_mean", {"reward": 0.3})
    assert batch.tokens.shape == (2, 8)
    assert batch.metrics == {"reward": 0.3}
    found = []
    for row in range(2):
        for document in sorted(set(batch.document_ids[row].tolist()) - {-1}):
            where = batch.document_ids[row] == document
            inputs, targets = batch.tokens[row][where].tolist(), batch.targets[row][where].tolist()
            assert batch.positions[row][where].tolist() == list(range(len(inputs)))
            rollout = next(r for r in ROLLOUTS if r.tokens[:-1] == inputs)
            prompt = len(rollout.tokens) - rollout.n_answer
            assert targets == [IGNORED] * (prompt - 1) + rollout.tokens[prompt:], (
                "answer and its last token, and no prompt"
            )
            np.testing.assert_allclose(batch.old_logprobs[row][where][prompt - 1 :], rollout.logprobs, rtol=1e-6)
            assert set(batch.advantages[row][where][prompt - 1 :].tolist()) == {rollout.advantage}
            found.append(rollout.tokens)
    assert sorted(found) == sorted(rollout.tokens for rollout in ROLLOUTS)
    assert batch.n_targets == sum(rollout.n_answer for rollout in ROLLOUTS)
    assert sum(part.n_targets for part in batch.split(1)) == batch.n_targets


def test_a_rollout_longer_than_a_row_is_refused() -> None:
    with pytest.raises(AthanorError, match=r"takes 6 places .* rl\.length = 5"):
        pack_rollouts(ROLLOUTS, 5, 0, "token_mean", {})


def alone(model: Decoder, rollout: Rollout) -> torch.Tensor:
    """Log-probabilities of an answer, without any packing."""
    tokens = torch.tensor([rollout.tokens])
    everything = torch.log_softmax(model(tokens[:, :-1])[0], -1)
    return everything.gather(1, tokens[0, 1:, None]).squeeze(1)[-rollout.n_answer :]


@pytest.mark.parametrize("kept", [True, False], ids=["logits kept", "made again"])
@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean"])
@pytest.mark.parametrize("loss", sorted(POLICY_LOSSES))
def test_the_objective_aggregates_as_it_says(
    loss: str, aggregation: str, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not kept:
        monkeypatch.setattr(cross_entropy, "_KEPT", 0)
        monkeypatch.setattr(cross_entropy, "_CHUNK", 3)
    model = tiny_model()
    batch = pack_rollouts(ROLLOUTS, 8, 0, aggregation, {})
    result = policy_objective(loss, (0.2, 0.28))(model, batch)
    assert result.count == batch.n_targets == 10
    (result.sum / result.count).backward()
    got = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    losses = []
    for rollout in ROLLOUTS:
        logprobs = alone(model, rollout)
        advantages = torch.full_like(logprobs, rollout.advantage)
        losses.append(POLICY_LOSSES[loss](logprobs, torch.tensor(rollout.logprobs), advantages, (0.2, 0.28)))
    token_mean, sequence_mean = torch.cat(losses).mean(), torch.stack([x.mean() for x in losses]).mean()
    wanted = token_mean if aggregation == "token_mean" else sequence_mean
    wanted.backward()
    assert (result.sum / result.count).item() == pytest.approx(wanted.item(), rel=1e-4)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(got[name], parameter.grad, atol=2e-5, rtol=1e-3)


def test_it_reports_entropy_and_drift() -> None:
    model = tiny_model()
    with torch.no_grad():
        exact = [Rollout(r.tokens, alone(model, r).tolist(), r.reward, r.advantage) for r in ROLLOUTS]
    batch: RolloutBatch = pack_rollouts(exact, 16, 0, "token_mean", {})
    metrics: Any = policy_objective("clipped", (0.2, 0.28))(model, batch).metrics
    assert metrics["ratio_drift"] / batch.n_targets < 1e-5
    assert 0 < metrics["entropy"] / batch.n_targets < math.log(20)
