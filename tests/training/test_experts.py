"""Experts are balanced: the losses are transformers', the bias moves against the load, padding counts nowhere."""

from __future__ import annotations

import pytest
import torch
from transformers.models.mixtral import modeling_mixtral
from transformers.models.switch_transformers import modeling_switch_transformers

from athanor.base.errors import ModelError
from athanor.models.build import build
from athanor.models.config import MlpConfig, MoeConfig
from athanor.training.batches import DocumentPieces, PackedBatches
from athanor.training.objectives import ExpertBalance, next_token
from athanor.training.objectives.experts import load_balance, router_z
from tests.training.texts import decoder_config, shards, special


def batches(length: int = 64) -> PackedBatches:
    return PackedBatches(DocumentPieces(*shards(), length, special().end), 4, length, 1, pad_id=special().end)


def experts(**options: object) -> MoeConfig:
    return MoeConfig(4, 2, MlpConfig(32), **options)  # type: ignore[arg-type]


def test_the_losses_are_those_of_transformers() -> None:
    logits = torch.randn(40, 4, generator=torch.Generator().manual_seed(1))
    best = logits.argmax(-1)
    theirs = modeling_switch_transformers.load_balancing_loss_func(logits.softmax(-1)[None], best[None, :, None])
    assert float(load_balance(logits, best[:, None])) == pytest.approx(float(theirs), rel=1e-5)
    theirs = modeling_switch_transformers.router_z_loss_func(logits[None])
    assert float(router_z(logits)) == pytest.approx(float(theirs), rel=1e-5)
    theirs = modeling_mixtral.load_balancing_loss_func((logits,), 4, 2)
    assert float(load_balance(logits, logits.topk(2).indices)) == pytest.approx(float(theirs), rel=1e-5)


def test_the_routers_learn_from_it_and_padding_counts_nowhere() -> None:
    model, batch = build(decoder_config(experts()), 0), batches().next()
    assert (batch.document_ids < 0).any()
    objective = ExpertBalance(model, next_token, auxiliary=1.0, z=0.1)
    plain, loss = next_token(model, batch), objective(model, batch)
    assert loss.count == plain.count
    added = (loss.sum - plain.sum) / loss.count
    assert float(added) == pytest.approx(loss.metrics["balance"] / loss.count, rel=1e-4)
    added.backward()
    for name, parameter in model.named_parameters():
        if "router" in name:
            assert parameter.grad is not None
            assert parameter.grad.abs().sum() > 0
    batch.tokens[batch.document_ids < 0] = 7
    assert objective(model, batch).metrics["balance"] == pytest.approx(loss.metrics["balance"], rel=1e-6)
    assert all(router.watch is None for router in objective.routers.values())


def test_the_bias_moves_against_the_load_by_a_fixed_amount() -> None:
    model = build(decoder_config(experts(correction=True, scores="sigmoid")), 0)
    objective = ExpertBalance(model, next_token, auxiliary=0.0, z=0.0, bias_rate=0.01)
    for batch in batches().next().split(2):
        objective(model, batch)
    loads = {name: load.clone() for name, load in objective._loads.items()}
    objective.after_step(model)
    for name, router in objective.routers.items():
        assert router.correction is not None
        mean = loads[name].mean()
        wanted = [0.01 if load < mean else -0.01 if load > mean else 0.0 for load in loads[name]]
        assert router.correction.tolist() == pytest.approx(wanted)
        assert not router.correction.requires_grad
    assert loads[name].sum() == 2 * (batches().next().document_ids >= 0).sum()


@pytest.mark.parametrize("way", ["auxiliary", "bias"])
def test_a_router_that_prefers_one_expert_is_evened_out(way: str) -> None:
    model = build(decoder_config(experts(correction=True)), 0)
    options = {"auxiliary": 0.1} if way == "auxiliary" else {"auxiliary": 0.0, "z": 0.0, "bias_rate": 0.005}
    objective, batch, loads = ExpertBalance(model, next_token, **options), batches().next(), []
    with torch.no_grad():
        for router in objective.routers.values():
            router.weight[0] = router.weight[1] * 1.2  # whatever the second is chosen for, the first is too
    routers = [router.weight for router in objective.routers.values()]
    optimizer = torch.optim.AdamW(routers, lr=3e-3 if way == "auxiliary" else 0.0)
    for _ in range(60):
        loss = objective(model, batch)
        (loss.sum / loss.count).backward()
        optimizer.step()
        model.zero_grad()
        objective.after_step(model)
        loads.append(loss.metrics["expert_load"] / loss.count)
    assert loads[0] > 1.3
    assert sum(loads[-5:]) / 5 < 1.2


def test_what_has_no_experts_or_no_bias_is_refused() -> None:
    with pytest.raises(ModelError, match="no experts"):
        ExpertBalance(build(decoder_config(), 0), next_token)
    with pytest.raises(ModelError, match="no bias to balance"):
        ExpertBalance(build(decoder_config(experts()), 0), next_token, bias_rate=0.1)
