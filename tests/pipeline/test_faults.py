"""What a run says of faults: before it starts, when a scheduler stops it, and when it has ended."""

from __future__ import annotations

import json
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from athanor.base.errors import RecipeError
from athanor.pipeline import planning
from athanor.pipeline.recipe_checks import check
from athanor.pipeline.recipe_files import load_recipe
from athanor.pipeline.summary import incidents
from athanor.training.parallel import Group
from tests.pipeline.conftest import athanor, athanor_process


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_a_scheduler_stops_a_run_and_the_same_command_continues(tiny_recipe: Path, tmp_path: Path) -> None:
    arguments = ("run", str(tiny_recipe), "--name", "life", "--set", "pretrain.steps=100000")
    process = athanor_process(*arguments, folder=tmp_path)
    stage = tmp_path / "runs" / "life" / "pretrain"
    while process.poll() is None and not ((log := stage / "metrics.jsonl").exists() and log.stat().st_size > 500):
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM, err
    assert "SIGTERM: stopping after this step" in err
    assert "which is saved; the same command continues from there." in err
    assert "Training takes about" in err
    assert "Traceback" not in err
    assert list(stage.glob("checkpoints/step-*"))
    process = athanor_process(*arguments, folder=tmp_path)
    while process.poll() is None and json.loads((stage / "incidents.json").read_text())["timing"]["resumed"] == 0:
        time.sleep(0.02)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    assert "Continuing after step" in process.communicate()[1]
    assert process.returncode == 130


@pytest.mark.slow
def test_the_counts_reach_the_report_and_the_best_checkpoint_is_kept(tiny_recipe: Path, tmp_path: Path) -> None:
    keep = ("--set", "pretrain.keep.best=true", "--set", "pretrain.keep.last=1", "--set", "pretrain.evaluate_every=4")
    athanor("run", str(tiny_recipe), "--name", "life", *keep, folder=tmp_path)
    run = tmp_path / "runs" / "life"
    report = json.loads((run / "report.json").read_text())
    nothing = {"resumed": 0, "damaged_checkpoints": 0, "missed_checkpoints": 0}
    for name in ("pretrain", "sft", "rl", "control"):
        record = json.loads((run / name / "stage.json").read_text())
        assert record["timing"]["incidents"] == report["timing"]["stages"][name]["incidents"] == nothing
        assert record["metrics"]["spike_steps"] == report["stages"][name]["spike_steps"] == 0
    assert incidents(report) == ""
    measured = {
        line["step"]: line["bits_per_byte"]
        for line in map(json.loads, (run / "pretrain" / "metrics.jsonl").read_text().splitlines())
        if "bits_per_byte" in line
    }
    best = min(measured, key=lambda step: measured[step])
    kept = {int(path.name.removeprefix("step-")) for path in (run / "pretrain" / "checkpoints").iterdir()}
    assert kept == {best, max(measured)}


def test_faults_are_summed_up_in_a_sentence() -> None:
    report: dict[str, Any] = {
        "stages": {"corpus": {}, "pretrain": {"skipped_steps": 2, "spike_steps": 1}, "sft": {"skipped_steps": 1}},
        "timing": {"stages": {
            "corpus": {"incidents": None},
            "pretrain": {"incidents": {"resumed": 3, "damaged_checkpoints": 1, "missed_checkpoints": 0}},
            "sft": {"incidents": {"resumed": 1, "damaged_checkpoints": 0, "missed_checkpoints": 0}},
        }},
    }  # fmt: skip
    assert incidents(report) == (
        "Faults: 3 updates left out as not finite, 1 left out as spikes of the loss, 4 times resumed, "
        "1 damaged checkpoints found."
    )


def test_reinforcement_learning_has_no_best_checkpoint() -> None:
    with pytest.raises(RecipeError, match=r"rl\.keep\.best"):
        check(load_recipe("smoke", ["rl.keep.best=true"]))


def test_memory_that_may_not_suffice_is_said_before_training(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from types import SimpleNamespace

    from athanor.base.machine import describe
    from athanor.models.config import standard_config

    alone, four = Group(), Group(size=4, local_size=2)
    life: Any = SimpleNamespace(
        machine=replace(describe(), memory=10**12), device=alone.device, alone=alone, group=four
    )
    life.recipe = SimpleNamespace(sharded=False)
    plan: Any = SimpleNamespace(micro_rows=8, length=128, recompute="none")
    config = standard_config(1024, 128, d_model=128, n_layers=2)
    planning.check_that_it_fits(life, config, plan)
    said = capsys.readouterr().err
    assert said.startswith("Training takes about ")
    assert "may not fit" not in said
    monkeypatch.setattr(planning, "available_memory", lambda: 1000)
    planning.check_that_it_fits(life, config, plan)
    assert "That may not fit: end other programs" in capsys.readouterr().err
    life.machine = replace(life.machine, memory=1000)
    with pytest.raises(RecipeError, match="this machine has"):
        planning.check_that_it_fits(life, config, plan)
    monkeypatch.setattr(planning, "size", lambda n: f"<{n:.0f}>")
    life.machine, needed = replace(life.machine, memory=10**12), []
    for together, sharded in ((False, False), (True, False), (True, True)):
        life.recipe.sharded = sharded
        planning.check_that_it_fits(life, config, plan, together=together)
        needed.append(int(capsys.readouterr().err.split("<")[1].split(">")[0]))
    assert abs(needed[1] - 2 * needed[0]) <= 1, "two processes on this machine"
    assert needed[2] < needed[1]
