"""Writes docs/results.md from the reports of the runs that `default_job.py` made. Not a benchmark itself: run it with
python.
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
    Path("docs/results.md").write_text(text, encoding="utf-8")


def interval(pair: list[float]) -> str:
    return f"[{pair[0]:+.3f}, {pair[1]:+.3f}]"


def table(title: str, columns: list[tuple[str, Any]], reports: list[dict[str, Any]]) -> str:
    lines = [f"\n## {title}\n", "| " + " | ".join(name for name, _ in columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(cell(report) for _, cell in columns) + " |" for report in reports]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
