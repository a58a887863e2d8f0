"""A whole life by `torchrun`: two processes pre-train and fine-tune together, and it comes out as with one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from athanor.base.files import read_json, read_jsonl
from tests.pipeline.conftest import athanor
from tests.pipeline.test_objectives import write_recipe

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.distributed.is_available(), reason="needs torch.distributed"),
]


def together(*arguments: str, folder: Path, processes: int = 2) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return subprocess.run(
        [*launcher, "-m", "athanor", *arguments],
        cwd=folder, env=os.environ | {"ATHANOR_QUIET": "0"}, capture_output=True, text=True, timeout=500,
    )  # fmt: skip


@pytest.mark.parametrize("sharded", ["false", "true"])
def test_torchrun_makes_the_model_that_one_process_makes(sharded: str, tiny_recipe: Path, tmp_path: Path) -> None:
    athanor("run", str(tiny_recipe), "--name", "one", folder=tmp_path)
    done = together("run", str(tiny_recipe), "--name", "two", "--set", f"sharded={sharded}", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("pretrain: done") == 1  # the first process alone speaks
    one, two = tmp_path / "runs" / "one", tmp_path / "runs" / "two"
    for stage in ("pretrain", "sft"):
        lines, same = (read_jsonl(run / stage / "metrics.jsonl") for run in (one, two))
        assert len(lines) == len(same) == 24
        for line, other in zip(lines, same, strict=True):
            assert other["loss"] == pytest.approx(line["loss"], rel=5e-3)
    assert (two / "report.json").exists()
    assert read_json(two / "sft" / "model" / "config.json") == read_json(one / "sft" / "model" / "config.json")
    again = athanor("run", str(tiny_recipe), "--name", "two", "--set", f"sharded={sharded}", folder=tmp_path)
    assert again  # and one process takes the run up, all of it finished


@pytest.mark.parametrize(("objective", "sharded"), [("replaced", "true"), ("spans", "false"), ("experts", "true")])
def test_torchrun_trains_other_objectives(objective: str, sharded: str, tiny_recipe: Path, tmp_path: Path) -> None:
    recipe = str(write_recipe(tiny_recipe, objective))
    more = ["--set", f"sharded={sharded}", *(["--set", "model.balance=bias"] if objective == "experts" else [])]
    athanor("run", recipe, "--name", "one", *more, folder=tmp_path)
    done = together("run", recipe, "--name", "two", *more, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    one, two = tmp_path / "runs" / "one", tmp_path / "runs" / "two"
    lines, same = (read_jsonl(run / "pretrain" / "metrics.jsonl") for run in (one, two))
    assert len(lines) == len(same) == 12
    for line, other in zip(lines, same, strict=True):
        assert other["loss"] == pytest.approx(line["loss"], rel=5e-3)
    configs = [read_json(run / "pretrain" / "model" / "config.json") for run in (one, two)]
    assert configs[0] == configs[1]
    assert (two / "report.json").exists()


def test_what_one_process_began_two_continue(tiny_recipe: Path, tmp_path: Path) -> None:
    athanor("run", str(tiny_recipe), "--name", "one", folder=tmp_path)
    runs = tmp_path / "runs"
    for stage in ("sft", "rl", "control", "evaluate"):
        shutil.rmtree(runs / "one" / stage)
    done = together("run", str(tiny_recipe), "--name", "one", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "pretrain: finished before" in done.stderr
    assert read_json(runs / "one" / "sft" / "stage.json")["status"] == "finished"
