"""The main job on the packaged text, three seeds: quality, time kept, memory. Finished runs in ./runs are read, not repeated.

ATHANOR_BENCH_BUDGET changes the budget (default 10m).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

ISSUE = "A"
SEEDS = (0, 1, 2)


def run_folder(budget: str, seed: int) -> Path:
    return Path("runs") / f"bench-{budget}-{seed}"


def reports(budget: str) -> list[dict[str, Any]]:
    found = []
    for seed in SEEDS:
        folder = run_folder(budget, seed)
        command = ["run", "--budget", budget, "--seed", str(seed), "--name", folder.name]
        subprocess.run([sys.executable, "-m", "athanor.cli.main", *command], check=True, stdout=sys.stderr)
        found.append(json.loads((folder / "report.json").read_text()))
    return found


def rows() -> Iterator[dict[str, Any]]:
    budget = os.environ.get("ATHANOR_BENCH_BUDGET", "10m")
    found = reports(budget)
    base = [report["heldout_bits_per_byte"]["base"] for report in found]
    same = [report["baselines"]["kneser_ney_same_tokens"] for report in found]
    whole = [report["baselines"]["kneser_ney_all_text"] for report in found]
    yield row("base model, worst seed", max(base), "bits/byte", max(same), max(same), max(b / s for b, s in zip(base, same, strict=True)),
              all(b <= s for b, s in zip(base, same, strict=True)))  # fmt: skip
    yield row("base model, median", median(base), "bits/byte", None, median(whole), median(base) / median(whole), None)
    stop = min(report["sft"]["stop_rate"]["value"] for report in found)
    yield row("answers that stop by themselves, worst seed", stop, "share", 0.95, None, None, stop >= 0.95)
    for name in ("before", "control"):
        low = min(report["rl"]["pass_at_1"]["difference_ci95"][f"after_minus_{name}"][0] for report in found)
        gain = median(report["rl"]["pass_at_1"]["after"] - report["rl"]["pass_at_1"][name] for report in found)
        yield row(f"pass@1 after reinforcement learning minus {name}, median", gain, "share", 0.0, None, None, gain > 0)
        yield row(f"its 95 % interval's lower end, worst seed ({name})", low, "share", 0.0, None, None, low > 0)
    over = max(report["timing"]["seconds"] / report["timing"]["budget_seconds"] for report in found)
    yield row("time used of the budget, worst seed", over, "share", 1.15, None, None, over <= 1.15)
    memory = max(report["timing"]["peak_memory_bytes"] for report in found)
    yield row("peak resident memory", memory / 1e9, "GB", 3.0, None, None, memory < 3e9)


def row(metric: str, value: float, unit: str, target: Any, peer: Any, ratio: Any, met: Any) -> dict[str, Any]:
    return {"metric": metric, "value": value, "unit": unit, "target": target, "peer": peer, "ratio": ratio, "met": met}
