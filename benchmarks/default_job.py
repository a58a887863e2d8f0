"""The main job on the packaged text, three seeds: quality, time kept, memory. Finished runs in ./runs are read, not
repeated.

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

from _rows import row

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
    for seed, ours, theirs in zip(SEEDS, base, same, strict=True):
        yield row(
            f"base model against a 5-gram on the same tokens, seed {seed}", ours, "bits/byte", peer=theirs, most=True
        )
    # What a longer run must beat; no target of this one.
    yield {
        **row("base model against a 5-gram on all text, median", median(base), "bits/byte", peer=median(whole)),
        "met": None,
    }
    stop = min(report["sft"]["stop_rate"]["value"] for report in found)
    yield row("answers that stop by themselves, worst seed", stop, "share", target=0.95)
    for name in ("before", "control"):
        low = min(report["rl"]["pass_at_1"]["difference_ci95"][f"after_minus_{name}"][0] for report in found)
        gain = median(report["rl"]["pass_at_1"]["after"] - report["rl"]["pass_at_1"][name] for report in found)
        yield row(f"pass@1 after reinforcement learning minus {name}, median", gain, "share", target=0.0)
        yield row(f"lower end of its 95 % interval, worst seed ({name})", low, "share", target=0.0)
    used = max(report["timing"]["seconds"] / report["timing"]["budget_seconds"] for report in found)
    yield row("time used of the budget, worst seed", used, "share", target=1.15, most=True)
    memory = max(report["timing"]["peak_memory_bytes"] for report in found)
    yield row("peak resident memory", memory / 1e9, "GB", target=3.0, most=True)
