"""The mean of the last weights: right, kept through an interruption, and only in the model that comes out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from athanor.models.decoder import Decoder
from athanor.training.averaging import AverageKind
from athanor.training.batches import PackedBatches
from athanor.training.loop import LoopConfig, Trainer
from athanor.training.objectives import next_token
from athanor.training.optimizers import OptimizerConfig
from athanor.training.schedules import Schedule

Start = Callable[..., Trainer]


@pytest.fixture
def start(make_model: Callable[[int], Decoder], make_batches: Callable[[], PackedBatches]) -> Start:
    def make(folder: Path, average: AverageKind, **options: Any) -> Trainer:
        config = LoopConfig(10, 4, OptimizerConfig(), Schedule(2), checkpoint_every=3, average=average)
        return Trainer(make_model(0), next_token, make_batches(), replace(config, **options), folder)

    return make


def weights(trainer: Trainer) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


@pytest.mark.parametrize("average", ["tail", "ema"])
def test_the_model_ends_with_the_mean_of_the_decay(average: AverageKind, start: Start, tmp_path: Path) -> None:
    seen: list[dict[str, Tensor]] = []
    plain = start(tmp_path / "plain", "none")
    plain.beat = lambda: seen.append(weights(plain))
    plain.run("test")
    averaged = start(tmp_path / "averaged", average)
    averaged.run("test")
    for name, weight in weights(averaged).items():
        # Five steps of the decay: few enough that both kinds weigh them alike.
        torch.testing.assert_close(weight, torch.stack([step[name] for step in seen[5:]]).mean(0), atol=1e-6, rtol=1e-5)
        assert not torch.equal(weight, seen[-1][name])
    again = start(tmp_path / "averaged", average)
    again.run("test")
    assert all(torch.equal(weight, weights(again)[name]) for name, weight in weights(averaged).items())


def test_interrupted_it_ends_with_the_same_bits(start: Start, tmp_path: Path) -> None:
    whole = start(tmp_path / "whole", "tail")
    whole.run("test")
    for moment in (4, 8):
        cut = start(tmp_path / "cut", "tail")

        def beat(cut: Trainer = cut, moment: int = moment) -> None:
            if cut.outcome.steps == moment:
                raise KeyboardInterrupt

        cut.beat = beat
        with pytest.raises(KeyboardInterrupt):
            cut.run("test")
    resumed = start(tmp_path / "cut", "tail")
    resumed.run("test")
    assert all(torch.equal(weight, weights(resumed)[name]) for name, weight in weights(whole).items())


def test_a_falling_schedule_needs_steps() -> None:
    with pytest.raises(ValueError, match="number of steps"):
        LoopConfig(None, 4, OptimizerConfig(), Schedule(2, kind="cosine"))
