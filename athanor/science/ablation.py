"""What an experiment says: arms compared with a baseline, seed by seed.

A pair is two trainings with one seed, so with the same order of text and, where shapes allow, the same initial weights;
what they share cancels in the difference of their held-out bits per byte. The interval is Student's paired t over the
seeds. A gain or loss is called one only when the mean difference is beyond two standard deviations of the differences
and the interval excludes zero: with two or three seeds the first alone happens too often by chance.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any, TypeVar

from athanor.base.progress import quantity
from athanor.base.statistics import paired_t, student_t

_MOST_SEEDS = 1000
T = TypeVar("T")


@dataclass(frozen=True)
class Trial:
    """One arm trained with one seed. tokens: targets learnt from; seconds: of training."""

    bits_per_byte: float
    tokens: int
    tokens_per_second: float
    parameters: int
    seconds: float


@dataclass(frozen=True)
class Difference:
    """Arm minus baseline in bits per byte, over the seeds that both have finished; negative is better.

    relative: the mean over the baseline's. deviation, interval: None for a single pair. more_seeds: how many would make
    the interval exclude zero if mean and deviation stay; 0 where it does, None where that is not to be expected.
    """

    pairs: int
    mean: float
    relative: float
    deviation: float | None
    interval: tuple[float, float] | None
    verdict: str
    more_seeds: int | None

    @property
    def sentence(self) -> str:
        """The verdict in words."""
        return _SENTENCES[self.verdict] + self._wanted()

    def _wanted(self) -> str:
        if self.verdict != "undecided" or self.pairs < 2:
            return ""
        if self.more_seeds is None:
            return f"; not even {_MOST_SEEDS:,} seeds would decide it"
        plural = "" if self.more_seeds == 1 else "s"
        return f"; about {self.more_seeds} more seed{plural} would decide it if the differences stay as they are"


_SENTENCES = {
    "gain": "gain: lower by more than two standard deviations of the paired differences",
    "loss": "loss: higher by more than two standard deviations of the paired differences",
    "slight gain": "slight gain: the interval excludes zero, but single pairs differ by as much",
    "slight loss": "slight loss: the interval excludes zero, but single pairs differ by as much",
    "same": "no difference: every pair ended with the same figure",
    "single": "undecided: one pair says nothing about the noise; 2 more seeds at least",
    "undecided": "undecided: the interval includes zero",
}


def compare(baseline: Mapping[int, float], arm: Mapping[int, float]) -> Difference | None:
    """Both by seed, in bits per byte. None where no seed is in both."""
    seeds = sorted(set(baseline) & set(arm))
    if not seeds:
        return None
    differences = [arm[seed] - baseline[seed] for seed in seeds]
    mean = fmean(differences)
    relative = mean / fmean(baseline[seed] for seed in seeds)
    if len(seeds) == 1:
        return Difference(1, mean, relative, None, None, "single", 2)
    deviation, interval = stdev(differences), paired_t(differences)
    more = _more_seeds(mean, deviation, len(seeds))
    verdict = _verdict(mean, deviation, interval)
    return Difference(len(seeds), mean, relative, deviation, interval, verdict, more)


def _verdict(mean: float, deviation: float, interval: tuple[float, float]) -> str:
    if mean == 0 and deviation == 0:
        return "same"
    if interval[0] <= 0 <= interval[1]:
        return "undecided"
    size = "" if abs(mean) > 2 * deviation else "slight "
    return size + ("gain" if mean < 0 else "loss")


def _more_seeds(mean: float, deviation: float, seeds: int) -> int | None:
    def decides(number: int) -> bool:
        return abs(mean) > student_t(number - 1) * deviation / math.sqrt(number)

    if decides(seeds):
        return 0
    low, high = seeds, _MOST_SEEDS
    if not decides(high):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if decides(middle) else (middle, high)
    return high - seeds


def alternate(arms: Sequence[T], seeds: Sequence[int]) -> list[tuple[T, int]]:
    """The order of the trials: seed after seed, each beginning with another arm, so that a machine that drifts, or that
    is busy for a while, favours none.
    """
    turns = [(number % len(arms), seed) for number, seed in enumerate(seeds)]
    return [(arm, seed) for first, seed in turns for arm in (*arms[first:], *arms[:first])]


def summarise(trials: Mapping[str, Mapping[int, Trial]]) -> list[dict[str, Any]]:
    """A JSON object an arm, the baseline (the first of `trials`) too: means over its seeds, and its difference from the
    baseline, which is null for the baseline itself.
    """
    bits = {name: {seed: trial.bits_per_byte for seed, trial in found.items()} for name, found in trials.items()}
    first = next(iter(trials))
    return [_row(name, found, compare(bits[first], bits[name]) if name != first else None)
            for name, found in trials.items()]  # fmt: skip


def _row(name: str, trials: Mapping[int, Trial], difference: Difference | None) -> dict[str, Any]:
    values = list(trials.values())

    def mean(key: str) -> float | None:
        return fmean(getattr(trial, key) for trial in values) if values else None

    bits = [trial.bits_per_byte for trial in values]
    return {
        "name": name,
        "bits_per_byte": {
            "mean": mean("bits_per_byte"),
            "deviation": stdev(bits) if len(bits) > 1 else None,
            "by_seed": {str(seed): trial.bits_per_byte for seed, trial in trials.items()},
        },
        "parameters": values[0].parameters if values else None,
        **{key: mean(key) for key in ("tokens", "tokens_per_second", "seconds")},
        "difference": None if difference is None else {
            "pairs": difference.pairs,
            "mean": difference.mean,
            "relative": difference.relative,
            "deviation": difference.deviation,
            "ci95": None if difference.interval is None else list(difference.interval),
            "verdict": difference.verdict if difference.verdict != "single" else "undecided",
            "more_seeds": difference.more_seeds,
            "sentence": difference.sentence,
        },
    }  # fmt: skip


COLUMNS = ("arm", "bits/byte", "difference, 95 %", "tokens/s", "tokens", "verdict")


def table(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Cells for people, under COLUMNS."""
    return [_cells(row) for row in rows]


def _cells(row: Mapping[str, Any]) -> list[str]:
    bits, difference = row["bits_per_byte"], row["difference"]
    if bits["mean"] is None:
        return [row["name"], "failed", *[""] * (len(COLUMNS) - 2)]
    found = verdict = ""
    if difference is not None:
        ci95, verdict = difference["ci95"], difference["verdict"]
        found = f"{difference['mean']:+.4f}" + (f" ± {(ci95[1] - ci95[0]) / 2:.4f}" if ci95 else "")
    speed = [f"{row['tokens_per_second']:,.0f}", quantity(row["tokens"])]
    return [row["name"], f"{bits['mean']:.4f}", found, *speed, verdict]


def markdown(result: Mapping[str, Any]) -> str:
    """The result as a section of a diary: what was tried, the table, the verdicts in words."""
    machine, seeds = result["machine"], len(result["seeds"])
    lines = [
        f"## {result['name']}",
        "",
        f"`{result['command']}`: held-out bits per byte of {result['recipe']} after {result['extent']} of pre-training"
        ", "
        f"{seeds} seed{'s' if seeds > 1 else ''}, {quantity(result['scored_tokens'])} held-out tokens scored, "
        f"{machine['processor']}, {machine['cores']} cores. "
        "Lower is better; intervals are Student's paired t over the seeds.",
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "|" + "---|" * len(COLUMNS),
        *("| " + " | ".join(_escaped(cell) for cell in cells) + " |" for cells in table(result["arms"])),
        "",
        *sentences(result),
    ]
    return "\n".join(lines) + "\n"


def sentences(result: Mapping[str, Any]) -> list[str]:
    """The verdict on each arm, and what has failed."""
    differences = [(row["name"], row["difference"]) for row in result["arms"] if row["difference"]]
    found = [f"- {name}: {difference['relative']:+.1%}, {difference['sentence']}." for name, difference in differences]
    return found + [f"- {failure['arm']}, seed {failure['seed']}, failed: {failure['error']}"
                    for failure in result["failed"]]  # fmt: skip


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|")
