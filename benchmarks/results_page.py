"""Writes docs/results.md from the reports of the runs that `default_job.py` made, and from the rows of `objectives.py`
in performance.jsonl. Not a benchmark itself: run it with python.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RUNS = sorted(Path("runs").glob("bench-10m-*/report.json"))
HEAD = """# Results

Made by `python benchmarks/results_page.py` from the runs of `athanor bench default_job`. Bits per byte are on held-out
documents, lower is better; the 5-gram is modified Kneser-Ney over the same tokenizer. Fine-tuning on short dialogues
and exercises alone makes a model of this size forget much of the prose it read, so its bits per byte of prose rise
again. Intervals are 95 %.
"""
MEASURED = Path("benchmarks/performance.jsonl")
LOWER, UPPER = ": gain, lower end of the 95 % interval", ": gain, upper end"
# Of the recipe that trained on the text alone, without n-grams as targets and kernels in C, in the same budget.
BASE_BEFORE = {0: 1.932, 1: 1.936, 2: 1.877}
SOLVED_BEFORE = {0: 0.458, 1: 0.509, 2: 0.560}
BEFORE = """The main job in the same ten minutes, when it learnt from the text alone, without counts of n-grams as
targets, and without the kernels in C; on a processor that computes as fast in fp32, but bf16 at 61 GFLOP/s, so that it
read 2.2 to 2.7 M tokens."""
OBJECTIVES = """By `athanor bench objectives`: a minute of training each, 128 wide, 4 layers. The baseline is the
frequencies of the targets, or the commonest answer, or what the row names; gains are in the same units, better is above
zero."""


def main() -> None:
    reports = [json.loads(path.read_text()) for path in RUNS]
    if not reports:
        raise SystemExit("There are no runs yet: athanor bench default_job")
    machine = reports[0]["machine"]
    rates = reports[0]["timing"]["rates"]
    text = HEAD + (
        f"\nMachine: {machine['processor']}, {machine['cores']} cores, torch {machine['torch']}, matrix products at "
        f"{rates['fp32'] / 1e9:.0f} GFLOP/s (fp32) and {rates['bf16'] / 1e9:.0f} GFLOP/s (bf16).\n"
    )
    text += table("The main job", [
        ("run", lambda r: r["name"]),
        ("parameters", lambda r: f"{r['model']['parameters'] / 1e6:.1f} M"),
        ("tokens read", lambda r: f"{r['stages']['pretrain']['tokens'] / 1e6:.2f} M"),
        ("time", lambda r: f"{r['timing']['seconds']:.0f} of {r['timing']['budget_seconds']:.0f} s"),
        ("share of peak", lambda r: f"{r['timing']['stages']['pretrain']['share_of_peak']:.0%}"),
        ("memory", lambda r: f"{r['timing']['peak_memory_bytes'] / 1e9:.1f} GB"),
    ], reports)  # fmt: skip
    text += table("Held-out bits per byte", [
        ("run", lambda r: r["name"]),
        ("base", lambda r: f"{r['heldout_bits_per_byte']['base']:.3f}"),
        ("5-gram, same tokens", lambda r: f"{r['baselines']['kneser_ney_same_tokens']:.3f}"),
        ("5-gram, all text", lambda r: f"{r['baselines']['kneser_ney_all_text']:.3f}"),
        ("after fine-tuning", lambda r: f"{r['heldout_bits_per_byte']['sft']:.3f}"),
        ("after reinforcement", lambda r: f"{r['heldout_bits_per_byte']['rl']:.3f}"),
    ], reports)  # fmt: skip
    text += table("Reinforcement learning, pass@1 on held-out problems", [
        ("run", lambda r: r["name"]),
        ("before", lambda r: f"{r['rl']['pass_at_1']['before']:.3f}"),
        ("after", lambda r: f"{r['rl']['pass_at_1']['after']:.3f}"),
        ("control", lambda r: f"{r['rl']['pass_at_1']['control']:.3f}"),
        ("after − before", lambda r: interval(r["rl"]["pass_at_1"]["difference_ci95"]["after_minus_before"])),
        ("after − control", lambda r: interval(r["rl"]["pass_at_1"]["difference_ci95"]["after_minus_control"])),
        ("pass@8 before", lambda r: f"{r['rl']['pass_at_8']['before']:.3f}"),
        ("pass@8 after", lambda r: f"{r['rl']['pass_at_8']['after']:.3f}"),
        ("answers that stop", lambda r: f"{r['sft']['stop_rate']['value']:.1%}"),
    ], reports)  # fmt: skip
    text += table("Before and after", [
        ("seed", lambda r: str(r["seed"])),
        ("base, before", lambda r: f"{BASE_BEFORE[r['seed']]:.3f}"),
        ("base, now", lambda r: f"{r['heldout_bits_per_byte']['base']:.3f}"),
        ("pass@1 after, before", lambda r: f"{SOLVED_BEFORE[r['seed']]:.3f}"),
        ("pass@1 after, now", lambda r: f"{r['rl']['pass_at_1']['after']:.3f}"),
    ], reports, BEFORE)  # fmt: skip
    Path("docs/results.md").write_text(text + objectives(), encoding="utf-8")


def objectives() -> str:
    """The table of the other objectives; empty where they have not been measured."""
    rows = [json.loads(line) for line in MEASURED.read_text(encoding="utf-8").splitlines()]
    found = {row["metric"]: row for row in rows if row["bench"] == "objectives"}
    scores = [row for name, row in found.items() if f"{name}{LOWER}" in found]
    if not scores:
        return ""
    return table("Other objectives", [
        ("what", lambda row: row["metric"]),
        ("value", lambda row: f"{row['value']:.3f} {row['unit']}"),
        ("baseline", lambda row: f"{row['peer']:.3f}"),
        ("gain", lambda row: interval([found[row["metric"] + end]["value"] for end in (LOWER, UPPER)])),
    ], scores, OBJECTIVES)  # fmt: skip


def interval(pair: list[float]) -> str:
    return f"[{pair[0]:+.3f}, {pair[1]:+.3f}]"


def table(title: str, columns: list[tuple[str, Any]], reports: list[dict[str, Any]], about: str = "") -> str:
    lines = [
        f"\n## {title}\n",
        *([f"{about}\n"] if about else []),
        "| " + " | ".join(name for name, _ in columns) + " |",
        "|" + "---|" * len(columns),
    ]
    lines += ["| " + " | ".join(cell(report) for _, cell in columns) + " |" for report in reports]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
