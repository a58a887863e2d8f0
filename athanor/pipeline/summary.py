"""What a person reads in the terminal when a run has ended."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from athanor.base.progress import duration, quantity


def summary(report: dict[str, Any], root: Path) -> str:
    if "objective" in report:
        return pretraining_summary(report, root)
    bits, rates, timing = report["heldout_bits_per_byte"], report["rl"]["pass_at_1"], report["timing"]
    low, high = rates["difference_ci95"]["after_minus_control"]
    stop, asked = report["sft"]["stop_rate"], report["rl"]
    budget = timing["budget_seconds"]
    baseline, whole = (report["baselines"][f"kneser_ney_{text}"] for text in ("same_tokens", "all_text"))
    counted = f"{baseline:.3f}" + (f", on all text: {whole:.3f}" if whole is not None else "")
    lines = [
        f"{quantity(report['model']['parameters'])} parameters, "
        f"{quantity(report['stages']['pretrain']['tokens'])} tokens read, {duration(timing['seconds'])}"
        + (f" of {duration(budget)}." if budget else "."),
        f"Held-out bits per byte, {quantity(bits['tokens'])} tokens: {bits['base']:.3f} "
        f"(5-gram on the tokens read: {counted}).",
        f"Answers that stop by themselves: {stop['value']:.0%} of {stop['n']}.",
        f"Reinforcement learning, pass@1 on {asked['problems']} problems × {asked['samples']} answers: "
        f"{rates['before']:.1%} before, {rates['after']:.1%} after, "
        f"{rates['control']:.1%} for the control (difference {low:+.1%} to {high:+.1%}, 95 %).",
        "",
        f"Report:  {root / 'report.html'}",
        f"Chat:    athanor chat {root.name}",
    ]
    return "\n".join([*lines, *([found] if (found := incidents(report)) else [])])


def pretraining_summary(report: dict[str, Any], root: Path) -> str:
    """What a person reads in the terminal when such a run has ended."""
    from athanor.evaluation.objectives import Score  # brings torch

    budget = report["timing"]["budget_seconds"]
    return "\n".join([
        f"{quantity(report['stages']['pretrain']['parameters'])} parameters of the family {report['family']}, "
        f"{duration(report['timing']['seconds'])}" + (f" of {duration(budget)}." if budget else "."),
        *(f"Held out, {Score(**values)}." for values in report["scores"]),
        "",
        f"Report:  {root / 'report.md'}",
        f"Model:   {root / 'pretrain' / 'model'}",
        *([found] if (found := incidents(report)) else []),
    ])  # fmt: skip


def incidents(report: dict[str, Any]) -> str:
    """What went wrong and was handled, in a sentence; nothing for a run without a fault."""
    counts = Counter[str]()
    for work, timing in zip(report["stages"].values(), report["timing"]["stages"].values(), strict=True):
        counts += Counter({name: work.get(name) or 0 for name in ("skipped_steps", "spike_steps")})
        counts += Counter(timing["incidents"] or {})
    words = {
        "skipped_steps": "updates left out as not finite",
        "spike_steps": "left out as spikes of the loss",
        "resumed": "times resumed",
        "damaged_checkpoints": "damaged checkpoints found",
        "missed_checkpoints": "checkpoints not written",
    }
    parts = [f"{counts[name]} {text}" for name, text in words.items() if counts[name]]
    return f"Faults: {', '.join(parts)}." if parts else ""
