"""`athanor history`: every run with its state, found again by name, and several compared in one picture."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

from athanor.base.errors import RunError
from athanor.base.metrics import MetricsLog, note_hyperparameters
from athanor.base.run import Run
from athanor.science.history import find_group, list_runs
from athanor.science.plots import draw_runs, read_lines

Athanor = Callable[..., "subprocess.CompletedProcess[str]"]


def make_run(folder: Path, steps: int = 40, start: float = 6.0, muon_lr: float = 0.015) -> Path:
    """A run that has logged and finished its pre-training."""
    recipe = {"seed": 0, "budget": "4m", "pretrain": {"optimizer": {"muon_lr": muon_lr}}}
    with Run(folder, recipe, "1", ["pretrain"], made_from="default") as run:
        stage = run.stage("pretrain", {}, {})
        log = MetricsLog(stage.folder, None)
        for step in range(1, steps + 1):
            metrics = {"loss": start / step**0.2}
            if step % 10 == 0:
                metrics["bits_per_byte"] = metrics["loss"] / 2
            log.write(step, metrics, {"tokens_per_second": 1000.0, "seconds": 0.5})
        log.close()
        stage.finish({"parameters": 7000, "tokens": 500 * steps}, [], {"tokens_per_second": 990.0})
    return folder


def test_a_list_of_runs(athanor: Athanor, tmp_path: Path) -> None:
    assert athanor("history", "--json").stdout == '{"runs": []}\n'
    assert "no runs" in athanor("history").stdout
    run = make_run(tmp_path / "runs" / "first")
    (run / "pretrain.replaced").mkdir()
    (run / "pretrain.replaced" / "stage.json").write_text('{"status": "finished", "name": "pretrain"}')
    make_run(tmp_path / "runs" / "experiment" / "baseline" / "seed-0")
    (tmp_path / "runs" / "broken").mkdir()
    (tmp_path / "runs" / "broken" / "run.json").write_text("{")
    broken, trial, first = json.loads(athanor("history", "--json").stdout)["runs"]
    assert broken["stages"] == []
    assert trial["name"] == "experiment/baseline/seed-0"
    assert first["stages"] == ["pretrain"]
    assert (first["recipe"], first["state"], first["budget"], first["seed"]) == ("default", "finished", "4m", 0)
    assert (first["parameters"], first["tokens"], first["tokens_per_second"]) == (7000, 20_000, 990.0)
    assert first["heldout_bits_per_byte"] == {"base": pytest.approx(3 / 40**0.2)}
    assert 6 / 40**0.2 < first["loss"] < 6 / 21**0.2
    (run / "report.json").write_text('{"heldout_bits_per_byte": {"base": 2.1, "sft": 2.2, "rl": 2.25}}')
    shown = athanor("history").stdout
    assert "2.100" in shown
    assert max(map(len, shown.splitlines())) <= 100  # with names of 26
    assert "finished" in shown


def test_a_report_of_stages_made_anew_since_does_not_count(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs" / "one")
    about = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({key: value for key, value in about.items() if key != "state"}))
    found = json.loads((run / "pretrain" / "stage.json").read_text())["fingerprint"]
    report = {"heldout_bits_per_byte": {"base": 2.1}, "lineage": {"pretrain": {"fingerprint": found}}}
    (run / "report.json").write_text(json.dumps(report))
    (record,) = list_runs(tmp_path / "runs")
    assert (record.state, record.heldout_bits_per_byte) == ("finished", {"base": 2.1, "sft": None, "rl": None})
    report["lineage"] = {"pretrain": {"fingerprint": "another"}}
    (run / "report.json").write_text(json.dumps(report))
    (record,) = list_runs(tmp_path / "runs")
    assert (record.state, record.heldout_bits_per_byte) == ("stopped", {"base": pytest.approx(3 / 40**0.2)})


def test_the_state_of_a_run(tmp_path: Path) -> None:
    def state() -> tuple[str, str | None]:
        (record,) = list_runs(tmp_path)
        return record.state, record.error

    with pytest.raises(KeyboardInterrupt), Run(tmp_path / "a", {}, "1", []):
        assert state() == ("running", None)
        raise KeyboardInterrupt
    assert state() == ("stopped", None)
    with pytest.raises(RunError), Run(tmp_path / "a", {}, "1", []):
        raise RunError("The furnace went out.", "Light it.")
    assert state() == ("failed", "The furnace went out. Light it.")
    about = tmp_path / "a" / "run.json"
    with Run(tmp_path / "a", {}, "1", []):
        killed = about.read_text()
    assert state() == ("finished", None)
    about.write_text(killed)
    assert state() == ("stopped", None)


def test_compare_draws_and_says_what_differs(athanor: Athanor, tmp_path: Path) -> None:
    make_run(tmp_path / "runs" / "one")
    for seed in range(2):
        make_run(tmp_path / "runs" / "exp" / "hot" / f"seed-{seed}", 30 + 10 * seed, 5.0, 0.03)
    done = athanor("history", "compare", "one", "exp/hot", "--output", "here.png")
    assert done.returncode == 0, done.stderr
    assert "pretrain.optimizer.muon_lr" in done.stdout
    assert "here.png" in done.stdout
    assert (tmp_path / "here.png").read_bytes().startswith(b"\x89PNG")
    text = "".join(ElementTree.parse(tmp_path / "here.svg").getroot().itertext())
    assert "prefers-color-scheme: dark" in text
    assert "#ffffff" not in text  # nothing stays light on a dark page
    for word in ("one", "exp/hot", "held-out bits per byte", "tokens read"):
        assert word in text
    found = json.loads(athanor("history", "compare", "one", "runs/exp/hot", "--json").stdout)
    assert found["settings"] == {"pretrain.optimizer.muon_lr": [0.015, 0.03]}
    assert [len(group["runs"]) for group in found["groups"]] == [1, 2]
    assert (tmp_path / found["plots"][0]).parent == tmp_path / "runs" / "one"


def test_curves_stand_over_tokens_and_time(tmp_path: Path) -> None:
    lines = read_lines(0, make_run(tmp_path / "a"))
    assert [(row["tokens"], row["seconds"]) for row in lines.bits] == [(5000 * k, 5.0 * k) for k in (1, 2, 3, 4)]


def test_runs_without_logs_can_be_drawn(tmp_path: Path) -> None:
    for name in ("a", "b"):
        with Run(tmp_path / name, {}, "1", []):
            pass
    groups = [group for name in ("a", "b") for group in find_group(name, tmp_path)]
    assert all(path.stat().st_size for path in draw_runs(groups, tmp_path / "empty.png"))


def test_misuse_of_compare(athanor: Athanor, tmp_path: Path) -> None:
    make_run(tmp_path / "runs" / "first")
    for arguments, said in (
        (("frist", "first"), "Did you mean first?"),
        (("first",), "needs two runs"),
        (("first", "runs/first"), "needs two runs"),
        (("first", "first/x"), "no run"),
    ):
        done = athanor("history", "compare", *arguments)
        assert done.returncode == 2
        assert said in done.stderr
        assert "Traceback" not in done.stderr


def test_hyperparameters_reach_tensorboard(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import metadata

    note_hyperparameters(
        tmp_path / "events", {"seed": 3, "optimizer": {"muon_lr": 0.02}, "steps": None, "betas": [0.8]}
    )
    log = MetricsLog(tmp_path / "log", tmp_path / "events")
    log.write(1, {"loss": 2.5}, {"seconds": 0.5})
    log.close()
    found = EventAccumulator(str(tmp_path / "events")).Reload()
    assert [event.value for event in found.Scalars("loss")] == [2.5]
    content = found.SummaryMetadata(metadata.SESSION_START_INFO_TAG).plugin_data.content
    values = metadata.parse_session_start_info_plugin_data(content).hparams
    assert (values["seed"].number_value, values["optimizer.muon_lr"].number_value) == (3, 0.02)
    assert values["betas"].string_value == "[0.8]"
    assert "steps" not in values
