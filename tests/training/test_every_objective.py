"""Every objective in the one loop: interrupted it ends with the same bits, and micro-batches change nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from athanor.models.build import build, new
from athanor.models.config import MlpConfig, MoeConfig
from athanor.training.batches import Batch
from athanor.training.denoisers import UL2
from athanor.training.drawn import DrawnBatches, Pieces
from athanor.training.loop import LoopConfig, Trainer
from athanor.training.objectives import (
    Distillation,
    ExpertBalance,
    Loss,
    denoising,
    masked_language_model,
    next_token,
    prefix_language_model,
    replaced_tokens,
)
from athanor.training.optimizers import OptimizerConfig
from athanor.training.parallel import ALONE, Group
from athanor.training.prefixes import Infilling, PrefixTexts
from athanor.training.schedules import Schedule
from tests.training.test_denoisers import corrupted
from tests.training.test_experts import batches
from tests.training.test_masking import electra, masked, pairs
from tests.training.texts import decoder_config, encoder_config, shards, special, t5_config

Made = tuple[nn.Module, Any, Callable[[Any, Any], Loss], Any]


def bert(group: Group = ALONE) -> Made:
    return new(encoder_config(pooler=True, next_sentence=True)), pairs(), masked_language_model, None


def roberta(group: Group = ALONE) -> Made:
    return new(encoder_config()), masked(), masked_language_model, None


def ul2(group: Group = ALONE) -> Made:
    return new(t5_config()), corrupted(UL2), denoising, None


def prefix(group: Group = ALONE) -> Made:
    source = DrawnBatches(PrefixTexts(Pieces(*shards(), 63), special(), 1), 4, 64, 1)
    return build(decoder_config(), 0), source, prefix_language_model, None


def infilling(group: Group = ALONE) -> Made:
    return (
        build(decoder_config(), 0),
        DrawnBatches(Infilling(Pieces(*shards(), 60), special(), 1), 4, 64, 1),
        next_token,
        None,
    )


def experts(group: Group = ALONE) -> Made:
    model = build(decoder_config(MoeConfig(4, 2, MlpConfig(32), correction=True)), 0)
    balance = ExpertBalance(model, next_token, bias_rate=0.01, group=group)
    return model, batches(), balance, balance.after_step


def distillation(group: Group = ALONE) -> Made:
    return build(decoder_config(), 0), batches(), Distillation(build(decoder_config(), 1), weight=0.5), None


def discriminator(group: Group = ALONE) -> Made:
    return electra(), masked(), replaced_tokens, None


EVERY = (bert, roberta, discriminator, ul2, prefix, infilling, experts, distillation)


def trainer(
    make: Callable[[], Made],
    folder: Path,
    steps: int = 4,
    micro_rows: int = 2,
    stop: int = 0,
    group: Group = ALONE,
    **options: Any,
) -> Trainer:
    model, source, objective, after_step = make()
    if stop:
        own, calls = objective, iter(range(1, 1000))

        def objective(model: nn.Module, batch: Batch) -> Loss:
            if next(calls) == stop:
                raise KeyboardInterrupt
            loss: Loss = own(model, batch)
            return loss

    config = LoopConfig(steps, micro_rows, OptimizerConfig(), Schedule(1), checkpoint_every=1, **options)
    return Trainer(model, objective, source, config, folder, after_step=after_step, group=group)


@pytest.mark.parametrize("make", EVERY, ids=lambda make: make.__name__)
def test_interrupted_it_ends_with_the_same_bits(make: Callable[[], Made], tmp_path: Path) -> None:
    whole = trainer(make, tmp_path / "whole")
    whole.run("test")
    with pytest.raises(KeyboardInterrupt):
        trainer(make, tmp_path / "cut", stop=6).run("test")
    resumed = trainer(make, tmp_path / "cut")
    assert resumed.run("test") == whole.outcome
    for name, weight in whole.model.named_parameters():
        assert torch.equal(weight, dict(resumed.model.named_parameters())[name]), name
    assert (tmp_path / "whole" / "metrics.jsonl").read_bytes() == (tmp_path / "cut" / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize("make", [bert, discriminator, ul2, distillation], ids=lambda make: make.__name__)
def test_micro_batches_give_the_gradient_of_the_batch(make: Callable[[], Made], tmp_path: Path) -> None:
    gradients = []
    for micro_rows in (1, 4):
        one = trainer(make, tmp_path / str(micro_rows), micro_rows=micro_rows)
        loss, metrics, _ = one._accumulate(one.source.next())
        gradients.append([p.grad for p in one.model.parameters()] + [torch.tensor([loss, *metrics.values()])])
    for got, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-3)


def test_the_mean_is_over_what_the_objective_counts(tmp_path: Path) -> None:
    def twice(model: Any, batch: Batch) -> Loss:
        loss = next_token(model, batch)
        return Loss(loss.sum * 2, loss.count * 2, {"text": float(loss.sum.detach()) * 2})

    gradients = []
    for objective in (next_token, twice):
        one = trainer(lambda objective=objective: (build(decoder_config(), 0), batches(), objective, None), tmp_path)  # type: ignore[misc]
        loss, metrics, _ = one._accumulate(one.source.next())
        gradients.append([p.grad for p in one.model.parameters()] + [torch.tensor(metrics.get("text", loss))])
    for got, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(got, wanted)
