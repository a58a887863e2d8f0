"""What a MODEL on the command line means: a model folder, or a run, whose last finished stage with a model is taken."""

from __future__ import annotations

from pathlib import Path

from athanor.base.errors import ModelError
from athanor.base.files import read_json

RUNS = Path("runs")


def find_model(name: str | Path, runs: Path = RUNS) -> Path:
    """The model folder that `name` stands for. Raises ModelError, naming what there is."""
    path = Path(name)
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


def _newest_model(run: Path) -> Path:
    for stage in reversed(read_json(run / "run.json").get("stages", [])):
        record = run / stage / "stage.json"
        finished = record.is_file() and read_json(record).get("status") == "finished"
        if finished and (run / stage / "model" / "config.json").is_file():
            return run / stage / "model"
    raise ModelError(f"The run {run} has not made a model yet.", f"Continue it with `athanor run --name {run.name}`.")
