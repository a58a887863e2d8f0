"""What a MODEL on the command line means: a model folder, or a run, whose last finished stage with a model is taken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from athanor.base.errors import ModelError, RunError
from athanor.base.files import read_json

RUNS = Path("runs")


def find_model(name: str | Path, runs: Path | None = None) -> Path:
    """The model folder that `name` stands for. Raises ModelError, naming what there is."""
    path, runs = Path(name), runs or RUNS
    for candidate in (path, runs / path):
        if (candidate / "config.json").is_file():
            return candidate
        if (candidate / "run.json").is_file():
            return _newest_model(candidate)
        if (candidate / "model" / "config.json").is_file():  # one stage of a run
            return candidate / "model"
    there = sorted(p.parent.name for p in runs.glob("*/run.json")) if runs.is_dir() else []
    known = f"Runs here: {', '.join(there)}." if there else "There are no runs here yet; `athanor run` makes one."
    raise ModelError(f"There is no model {str(name)!r}.", f"Give a model folder or the name of a run. {known}")


def latest_model(runs: Path | None = None) -> Path:
    """The model of the run that made one most recently. Raises ModelError when no run here has."""
    records = sorted((runs or RUNS).glob("*/run.json"))
    newest = [models[0] for record in records if (models := _finished_models(record.parent))]
    if not newest:
        raise ModelError("No run here has made a model yet.", "Name a model folder, or make one with `athanor run`.")
    return max(newest, key=lambda model: (model / "config.json").stat().st_mtime)


def _newest_model(run: Path) -> Path:
    for model in _finished_models(run):
        return model
    raise ModelError(f"The run {run} has not made a model yet.", f"Continue it with `athanor run --name {run.name}`.")


def _finished_models(run: Path) -> list[Path]:
    """The models of the run's finished stages, the last stage first."""
    stages = [run / name for name in reversed(_record(run / "run.json").get("models", []))]
    return [
        stage / "model"
        for stage in stages
        if (stage / "model" / "config.json").is_file() and _record(stage / "stage.json").get("status") == "finished"
    ]


def _record(path: Path) -> dict[str, Any]:
    record = read_json(path) if path.is_file() else {}
    if not isinstance(record, dict):
        raise RunError(f"{path} is not a JSON object.", "Restore it, or move the run away.")
    return record
