"""`athanor history`: the runs in ./runs, what each has finished and how good its model is."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from athanor.base.errors import AthanorError
from athanor.base.files import read_json
from athanor.base.run import RUNS, run_folders
from athanor.cli.output import AsJson, print_json, print_table


def history(json: AsJson = False) -> None:
    """List the runs on this machine."""
    runs = [_summary(run) for run in run_folders(RUNS)]
    if json:
        print_json({"runs": runs})
    elif not runs:
        print(f"There are no runs in {RUNS}/ yet; `athanor run` makes one.")
    else:
        columns = ("name", "budget", "seed", "stages", "seconds", "held-out bits per byte")
        print_table(columns, [_row(run) for run in runs], ("seed", "seconds", "held-out bits per byte"))


def _summary(run: Path) -> dict[str, Any]:
    recipe = _inside(_object(run / "run.json"), "recipe")
    found = [_object(path) for path in sorted(run.glob("*/stage.json"), key=lambda path: path.stat().st_mtime)]
    stages = [stage for stage in found if stage.get("status") == "finished" and not _set_aside(stage, run)]
    bits = _inside(_object(run / "report.json"), "heldout_bits_per_byte")
    return {
        "name": run.name,
        "budget": recipe.get("budget"),
        "seed": recipe.get("seed"),
        "stages": [stage.get("name") for stage in stages],
        "seconds": sum(_number(_inside(stage, "timing").get("seconds")) or 0.0 for stage in stages),
        "heldout_bits_per_byte": {name: _number(bits.get(name)) for name in ("base", "sft", "rl")} if bits else None,
    }


def _set_aside(stage: dict[str, Any], run: Path) -> bool:
    return not (run / str(stage.get("name")) / "stage.json").is_file()


def _object(path: Path) -> dict[str, Any]:
    """What the file holds; nothing when it is missing or damaged, for one bad run must not hide the others."""
    try:
        value = read_json(path)
    except AthanorError:
        return {}
    return value if isinstance(value, dict) else {}


def _inside(value: dict[str, Any], key: str) -> dict[str, Any]:
    inner = value.get(key)
    return inner if isinstance(inner, dict) else {}


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _row(run: dict[str, Any]) -> list[str]:
    bits = run["heldout_bits_per_byte"]
    shown = " → ".join(f"{value:.3f}" for value in bits.values() if value is not None) if bits else ""
    stages = " ".join(map(str, run["stages"]))
    return [run["name"], str(run["budget"] or ""), str(run["seed"] or 0), stages, f"{run['seconds']:.0f}", shown]
