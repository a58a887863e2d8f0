"""What a budget is spent on: of a short one enough remains for pre-training."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from athanor.base.machine import Rates, describe
from athanor.base.run import Run
from athanor.corpus.readers import resolve
from athanor.pipeline.data_stages import limit_bytes
from athanor.pipeline.life import Life
from athanor.pipeline.planning import plan_pretraining
from athanor.pipeline.recipe_files import load_recipe
from athanor.science.planner import Speed
from athanor.training.optimizers import OptimizerConfig

_RATES = Rates(3.3e11, 6.1e10, 2.8e10)  # of two cores, as the speeds below
_SPEED = Speed((128, 1.15e11), (512, 1.43e11))
_BYTES_PER_TOKEN, _BYTES_PER_SECOND = 3.55, 1.2e6


@pytest.mark.parametrize(
    ("budget", "pretraining", "whole_text"), [("2m", 35, False), ("3m", 60, False), ("10m", 240, True)]
)
def test_what_is_left_for_pretraining(budget: str, pretraining: float, whole_text: bool) -> None:
    recipe = load_recipe("default", (), budget=budget)
    run = cast(Run, SimpleNamespace(seconds=0.0, root=Path()))
    life = Life(run, recipe, describe(), _RATES, _SPEED, 6.0)
    available = sum(cast(Any, source).text_bytes for source in resolve(["default"]))
    text = min(limit_bytes(life) or 0, available)
    assert (text == available) == whole_text
    cast(Any, run).seconds = 3.5 + text / _BYTES_PER_SECOND
    plan = plan_pretraining(life, 8192, int(text / _BYTES_PER_TOKEN))
    assert plan.seconds is not None
    assert plan.seconds >= pretraining
    assert plan.ngram_targets
    root = (plan.rows * plan.length / 2048) ** 0.5
    assert plan.optimizer.muon_lr == pytest.approx(min(2.0, root) * OptimizerConfig().muon_lr)
    assert life.share("sft") * 600 < 120  # what a budget needs besides comes off every stage
    seconds = (
        life.seconds
        + plan.seconds
        + recipe.budget_seconds * (life.share("sft") + life.share("rl") + life.evaluation_share)
    )
    assert seconds <= recipe.budget_seconds
