"""The runs of this machine, read from their folders: what they are, how they stand, and how good they became.

A run is a folder with a `run.json`: `runs/NAME`, or an experiment's `runs/NAME/ARM/seed-N`. Damaged files make a run
that says less, never an error: one bad run must not hide the others.
"""

from __future__ import annotations

import datetime
import difflib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from athanor.base.errors import AthanorError, RunError
from athanor.base.files import read_json
from athanor.base.run import RUNS, is_running

_LAST = 20  # steps whose losses are averaged
_MODELS = {"pretrain": "base", "sft": "sft", "rl": "rl"}  # names of a report's models, by the stage that makes them


@dataclass(frozen=True)
class RunRecord:
    """What a list of runs shows; None where it is not known.

    state: running, finished, failed (error says why) or stopped. stages: the finished ones, in their order in time.
    seconds: active ones. loss: mean of the last 20 steps of pre-training, in nats a token. heldout_bits_per_byte: of
    each model that was scored; while training, of the last preview. tokens, tokens_per_second, share_of_peak: of
    pre-training.
    """

    name: str
    recipe: str | None
    state: str
    error: str | None
    date: str
    budget: str | None
    seed: int | None
    stages: list[str]
    seconds: float
    parameters: int | None
    tokens: int | None
    loss: float | None
    heldout_bits_per_byte: dict[str, float | None] | None
    tokens_per_second: float | None
    share_of_peak: float | None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def list_runs(runs: Path | None = None) -> list[RunRecord]:
    """All there are, an experiment's trials too, by name."""
    root = runs or RUNS
    found = [path.parent for pattern in ("*/run.json", "*/*/seed-*/run.json") for path in root.glob(pattern)]
    return [read_run(folder, root) for folder in sorted(found)]


def read_run(folder: Path, root: Path | None = None) -> RunRecord:
    """The record of the run in `folder`, named by its path below `root`."""
    about = _object(folder / "run.json")
    recipe = _inside(about, "recipe")
    stages = _finished_stages(folder)
    pretrain = _inside(stages.get("pretrain", {}), "metrics")
    timing = _inside(stages.get("pretrain", {}), "timing")
    rows = _tail(folder / "pretrain" / "metrics.jsonl")
    metrics, speeds = _newest(rows), _newest(_tail(folder / "pretrain" / "timing.jsonl"))
    losses = [loss for row in rows if (loss := _number(row.get("loss"))) is not None][-_LAST:]
    report = _report(folder, stages)
    state, error = _state(folder, about, bool(report))
    return RunRecord(
        name=_name(folder, root or RUNS),
        recipe=about.get("made_from") if isinstance(about.get("made_from"), str) else None,
        state=state,
        error=error,
        date=_date(folder),
        budget=recipe.get("budget"),
        seed=recipe.get("seed"),
        stages=list(stages),
        seconds=sum(_number(_inside(stage, "timing").get("seconds")) or 0.0 for stage in stages.values()),
        parameters=_whole(pretrain.get("parameters")),
        tokens=_whole(pretrain.get("tokens")),
        loss=fmean(losses) if losses else None,
        heldout_bits_per_byte=_bits(report, stages, metrics),
        tokens_per_second=_number(timing.get("tokens_per_second")) or _number(speeds.get("tokens_per_second")),
        share_of_peak=_number(timing.get("share_of_peak")) or _number(speeds.get("share_of_peak")),
    )


def _finished_stages(folder: Path) -> dict[str, dict[str, Any]]:
    """By name; folders that were set aside do not count."""
    records = sorted(folder.glob("*/stage.json"), key=lambda path: path.stat().st_mtime)
    found = {path.parent.name: _object(path) for path in records}
    return {name: stage for name, stage in found.items()
            if stage.get("status") == "finished" and stage.get("name") == name}  # fmt: skip


def _report(folder: Path, stages: Mapping[str, Any]) -> dict[str, Any]:
    """The run's report, unless a stage was made anew since: then it is that of another run."""
    report = _object(folder / "report.json")
    lineage = _inside(report, "lineage")
    current = all(
        stages.get(name, {}).get("fingerprint") == _inside(lineage, name).get("fingerprint") for name in lineage
    )
    return report if current else {}


def _state(folder: Path, about: Mapping[str, Any], reported: bool) -> tuple[str, str | None]:
    """A killed process leaves no word; a run without one ended well if its report is there."""
    if is_running(folder):
        return "running", None
    state = about.get("state")
    if state in ("finished", "failed", "stopped"):
        return str(state), str(about["error"]) if state == "failed" and about.get("error") else None
    return ("finished" if reported and "state" not in about else "stopped"), None


def _bits(
    report: Mapping[str, Any], stages: Mapping[str, Any], metrics: Mapping[str, Any]
) -> dict[str, float | None] | None:
    """Of the report, of an experiment's score, else of the last preview while training."""
    if bits := _inside(report, "heldout_bits_per_byte"):
        return {name: _number(bits.get(name)) for name in _MODELS.values()}
    scored = _inside(stages.get("score", {}), "metrics")
    value = _number((scored or metrics).get("bits_per_byte"))
    return None if value is None else {"base": value}


def _newest(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The last value of every key."""
    values: dict[str, Any] = {}
    for row in rows:
        values |= row
    return values


def _tail(path: Path, size: int = 1 << 18) -> list[dict[str, Any]]:
    """The JSON objects in the last part of a log."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, path.stat().st_size - size))
            lines = file.read().split(b"\n")
    except OSError:
        return []
    rows = []
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:  # the first and the last may be cut off
            continue
        rows += [row] if isinstance(row, dict) else []
    return rows


def _date(folder: Path) -> str:
    """When the run last did something, in local time to the minute."""
    files = [folder / "run.json", *folder.glob("*/stage.json"), *folder.glob("*/timing.json*")]
    newest = max((file.stat().st_mtime for file in files if file.exists()), default=0.0)
    return datetime.datetime.fromtimestamp(newest).strftime("%Y-%m-%d %H:%M")


def _name(folder: Path, root: Path) -> str:
    try:
        return folder.resolve().relative_to(root.resolve()).as_posix()
    except ValueError:
        return folder.as_posix()


@dataclass(frozen=True)
class Group:
    """Runs that are drawn in one colour: one run, or an arm's seeds."""

    name: str
    folders: list[Path]


def find_group(name: str, runs: Path | None = None) -> list[Group]:
    """What a person means by `name`: a run or an arm, by its name below `runs` or its folder; an experiment's name
    means each of its arms. Raises RunError, naming those that are nearest.
    """
    root = runs or RUNS
    for folder in (root / name, Path(name)):
        if (folder / "run.json").is_file():
            return [Group(_name(folder, root), [folder])]
        if seeds := sorted(path.parent for path in folder.glob("seed-*/run.json")):
            return [Group(_name(folder, root), seeds)]
        arms = sorted({path.parents[1] for path in folder.glob("*/seed-*/run.json")}, key=_baseline_first)
        if arms:
            return [group for arm in arms for group in find_group(str(arm), root)]
    known = [run.name for run in list_runs(root)]
    near = difflib.get_close_matches(name, known, 3)
    meant = f"Did you mean {', '.join(near)}? " if near else ""
    raise RunError(f"There is no run {name!r}.", f"{meant}`athanor history` lists those of this folder.")


def _baseline_first(arm: Path) -> tuple[bool, str]:
    return arm.name != "baseline", arm.name


def differing_settings(folders: Sequence[Path]) -> dict[str, list[Any]]:
    """The settings of the runs' recipes that are not alike, by dotted key, a value a run; seeds do not count."""
    recipes = [_flat(_inside(_object(folder / "run.json"), "recipe")) for folder in folders]
    keys = sorted({key for recipe in recipes for key in recipe} - {"seed"})
    values = {key: [recipe.get(key) for recipe in recipes] for key in keys}
    return {key: found for key, found in values.items() if any(value != found[0] for value in found)}


def _flat(recipe: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in recipe.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def _object(path: Path) -> dict[str, Any]:
    try:
        value = read_json(path)
    except AthanorError:
        return {}
    return value if isinstance(value, dict) else {}


def _inside(value: Mapping[str, Any], key: str) -> dict[str, Any]:
    inner = value.get(key)
    return inner if isinstance(inner, dict) else {}


def _number(value: Any) -> float | None:
    known = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if known else None


def _whole(value: Any) -> int | None:
    return None if (number := _number(value)) is None else int(number)
