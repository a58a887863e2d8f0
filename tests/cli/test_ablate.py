"""`athanor ablate` on a recipe of seconds: paired, shared, resumed, and clear about what it cannot do."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from athanor.base.errors import RecipeError
from athanor.base.machine import Rates
from athanor.cli.ablate import ablate
from athanor.cli.history import compare
from athanor.pipeline import calibration
from athanor.pipeline.arms import Extent, read_arms, read_extent
from athanor.science.history import list_runs
from athanor.science.planner import Speed
from tests.pipeline.conftest import tiny_recipe

__all__ = ["tiny_recipe"]
Run = Callable[..., dict[str, Any]]


@pytest.fixture
def run(
    tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Run]:
    """Carries out an experiment on the tiny recipe and returns its result; the machine is not measured."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(calibration, "measure", lambda *_: Rates(1e11, 1e10, 1e10))
    monkeypatch.setattr(calibration, "measure_speed", lambda *_: Speed((128, 2e9), (512, 3e9)))

    def run(*sets: str, **options: Any) -> dict[str, Any]:
        ablate(str(tiny_recipe), list(sets), **{"by": "time", "seeds": 3, "json": True, **options})
        result: dict[str, Any] = json.loads(capsys.readouterr().out)
        return result

    threads = torch.get_num_threads()
    yield run
    torch.set_num_threads(threads)


def test_an_experiment_and_its_continuation(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = {"by": "steps", "budget": "5", "name": "try"}
    sets = ("pretrain.optimizer.embedding_lr=0.001", "pretrain.clip=1.0")
    result = run(*sets, **asked, seeds=2)
    baseline, slower, same = result["arms"]
    assert [row["name"] for row in result["arms"]] == ["baseline", "embedding_lr=0.001", "clip=1.0"]
    assert slower["difference"]["mean"] > 0
    assert same["difference"]["verdict"] == "same"  # the same weights and text, bit for bit
    assert list(baseline["bits_per_byte"]["by_seed"]) == ["1", "2"]
    assert baseline["tokens"] > 0
    folder = tmp_path / "runs" / "try"
    assert len(list((folder / "data").iterdir())) == 1
    assert json.loads((folder / "results.json").read_text()) == result
    assert "embedding_lr=0.001" in (folder / "results.md").read_text()
    assert (folder / "results.png").stat().st_size > 10_000

    weights = sorted(folder.glob("*/seed-*/pretrain/model/model.safetensors"))
    before = {path: path.stat().st_mtime_ns for path in weights}
    assert len(before) == 6
    again = run(*sets, "tokenizer.vocab_size=576", **asked, seeds=3)
    assert {path: path.stat().st_mtime_ns for path in weights} == before
    assert again["seeds"] == [1, 2, 3]
    assert again["arms"][0]["bits_per_byte"]["by_seed"].items() >= baseline["bits_per_byte"]["by_seed"].items()
    assert again["scored_tokens"] == result["scored_tokens"]
    assert len(list((folder / "data").iterdir())) == 2

    assert len([found for found in list_runs() if found.name.startswith("try/")]) == 12
    compare(["try"], json=True)
    assert [len(group["runs"]) for group in json.loads(capsys.readouterr().out)["groups"]] == [3, 3, 3, 3]
    with pytest.raises(RecipeError, match="another baseline, --by or --budget"):
        run(*sets, **asked | {"budget": "6"})


def test_equal_time(run: Run, tmp_path: Path) -> None:
    (tmp_path / "arms.toml").write_text('[baseline]\npretrain.warmup = 4\n["wide, flat"]\nmodel.d_ff = 256\n')
    result = run(arms=Path("arms.toml"), budget="1s", seeds=1)
    _, wide = result["arms"]
    assert wide["name"] == "wide, flat"
    assert "one pair says nothing" in wide["difference"]["sentence"]
    assert all(0.8 < row["seconds"] < 8 for row in result["arms"])
    plans = [json.loads(path.read_text())["plan"] for path in tmp_path.glob("runs/ablate-tiny/*/plan.json")]
    assert [plan["warmup"] for plan in plans] == [4, 4]


def test_an_arm_that_fails_does_not_take_the_others_with_it(run: Run, tmp_path: Path) -> None:
    sets = ("model.d_ff=192", "pretrain.clip=2.0")
    run(*sets, by="steps", budget="2", seeds=1)
    damaged = tmp_path / "runs" / "ablate-tiny" / "model.d_ff=192" / "seed-1" / "pretrain" / "stage.json"
    damaged.write_text("{")
    result = run(*sets, by="steps", budget="2", seeds=1)
    assert [(failure["arm"], failure["seed"]) for failure in result["failed"]] == [("d_ff=192", 1)]
    assert [row["difference"] is None for row in result["arms"]] == [True, True, False]


@pytest.mark.parametrize(
    ("sets", "options", "said"),
    [
        ([], {}, "no arm to compare"),
        (["sft.steps=3"], {}, "sft cannot be changed in an experiment"),
        (["pretrain.steps=3"], {}, "Use --by and --budget"),
        (["pretrain.stps=3"], {}, "Arm stps=3: The recipe has an unknown key 'pretrain.stps'"),
        (["pretrain=3"], {}, "Arm pretrain=3: "),
        (["model.d_ff=64"], {"by": "tokens"}, "needs a --budget"),
        (["model.d_ff=64"], {"by": "tokens", "budget": "2m"}, "Write it like 500k or 2M"),
        (["model.d_ff=64"], {"arms": Path("none.toml")}, "none.toml cannot be read"),
        (["model.d_ff=64"], {"name": "../up"}, "cannot be named"),
        (["corpus.held_out_share=0.3"], {"by": "steps", "budget": "2"}, "changes the held-out documents"),
    ],
)
def test_misuse(run: Run, sets: list[str], options: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError) as raised:
        run(*sets, **options)
    assert said in str(raised.value)


def test_how_much() -> None:
    assert read_extent("time", "2m") == Extent("time", 120)
    assert read_extent("tokens", "1.5M") == Extent("tokens", 1.5e6)
    assert read_extent("steps", "300") == Extent("steps", 300)
    for by, budget in (
        ("steps", "3k"),
        ("steps", "0"),
        ("tokens", "2m"),
        ("time", "300"),
        ("time", "0s"),
        ("days", "1"),
    ):
        with pytest.raises(RecipeError):
            read_extent(by, budget)


def test_names_of_arms(tmp_path: Path) -> None:
    _, arms = read_arms(["pretrain.clip=2", "model.d_ff=64", "tokenizer.vocab_size=[1]"], None)
    assert [arm.name for arm in arms] == ["clip=2", "d_ff=64", "vocab_size=[1]"]
    assert len({arm.folder for arm in arms}) == 3
    assert not any("[" in arm.folder for arm in arms)
    file = tmp_path / "a.toml"
    file.write_text("[baseline]\nmodel.d_ff = 64\n[one]\nmodel.n_layers = 2\n")
    baseline, (one,) = read_arms([], file)
    assert (baseline.changes, one.changes) == ({"model": {"d_ff": 64}}, {"model": {"d_ff": 64, "n_layers": 2}})
    file.write_text("one = 3\n")
    with pytest.raises(RecipeError, match="no table"):
        read_arms([], file)
