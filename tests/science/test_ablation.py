"""Verdicts on made-up numbers: the interval, the two deviations, the seeds that would be needed, and who goes first."""

from __future__ import annotations

import numpy as np
import pytest

from athanor.base.randomness import generator
from athanor.base.statistics import paired_t, student_t
from athanor.science.ablation import Trial, alternate, compare, markdown, summarise, table


@pytest.mark.parametrize(
    ("freedom", "quantile"),
    [(1, 12.7062), (2, 4.3027), (3, 3.1824), (4, 2.7764), (9, 2.2622), (10, 2.2281), (30, 2.0423), (120, 1.9799)],
)
def test_students_t_is_that_of_the_tables(freedom: int, quantile: float) -> None:
    assert student_t(freedom) == pytest.approx(quantile, abs=5e-5)


def test_the_interval_covers_the_mean_19_times_in_20() -> None:
    draws = generator(1, "test", "paired t").normal(0.3, 2.0, size=(4000, 4))
    intervals = np.array([paired_t(row) for row in draws])
    covered = (intervals[:, 0] < 0.3) & (intervals[:, 1] > 0.3)
    assert covered.mean() == pytest.approx(0.95, abs=0.012)


def by_seed(*values: float) -> dict[int, float]:
    return dict(enumerate(values))


BASE = by_seed(2.00, 2.10, 1.90, 2.05)


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ((-0.020, -0.022, -0.018, -0.021), "gain"), ((0.1, 0.11, 0.12, 0.1), "loss"),
        ((-0.02, 0.02, 0.01, -0.02), "undecided"), ((0.0, 0.0, 0.0, 0.0), "same"),
        ((-0.020, -0.008, -0.018, -0.006), "slight gain"), ((0.020, 0.008, 0.018, 0.006), "slight loss"),
        ((-0.02, -0.03), "undecided"), ((-0.02,), "single"),
    ],
)  # fmt: skip
def test_verdicts(changes: tuple[float, ...], verdict: str) -> None:
    """Pairs of very different seeds: what they share is not noise."""
    found = compare(BASE, {seed: BASE[seed] + change for seed, change in enumerate(changes)})
    assert found is not None
    assert found.verdict == verdict
    assert found.mean == pytest.approx(sum(changes) / len(changes))


def test_how_many_seeds_more() -> None:
    """With so many more pairs of the same mean and deviation the interval excludes zero, with one fewer it does not."""
    changes = (-0.02, 0.01, -0.015, 0.002)
    found = compare(BASE, {seed: BASE[seed] + change for seed, change in enumerate(changes)})
    assert found is not None
    assert found.more_seeds is not None
    assert found.deviation is not None
    number = len(changes) + found.more_seeds
    half = [student_t(n - 1) * found.deviation / n**0.5 for n in (number - 1, number)]
    assert half[1] < abs(found.mean) <= half[0]
    assert f"about {found.more_seeds} more seeds" in found.sentence
    hopeless = compare(BASE, {seed: BASE[seed] + change for seed, change in enumerate((1e-4, -1e-2, 1e-2, -2e-4))})
    assert hopeless is not None
    assert hopeless.more_seeds is None


def test_only_seeds_that_both_have_are_compared() -> None:
    found = compare({0: 2.0, 1: 3.0}, {1: 2.9, 2: 5.0})
    assert found is not None
    assert (found.pairs, found.mean) == (1, pytest.approx(-0.1))
    assert compare({0: 2.0}, {1: 2.0}) is None


def test_every_arm_goes_first_as_often() -> None:
    order = alternate(["a", "b", "c"], range(3))
    assert order[:4] == [("a", 0), ("b", 0), ("c", 0), ("b", 1)]
    assert len(set(order)) == len(order) == 9
    assert sorted(arm for arm, _ in order[::3]) == ["a", "b", "c"]


def test_a_result_in_words() -> None:
    def trials(*bits: float) -> dict[int, Trial]:
        return {seed: Trial(value, 1_500_000, 8000.0, 10**6, 120.0) for seed, value in enumerate(bits)}

    rows = summarise({"baseline": trials(2.0, 2.1, 2.2), "a|b": trials(1.9, 2.001, 2.098), "broken": {}})
    assert [row["difference"] is None for row in rows] == [True, False, True]
    assert table(rows)[1] == ["a|b", "1.9997", "-0.1003 ± 0.0038", "8,000", "1.5 M", "gain"]
    assert table(rows)[2][:2] == ["broken", "failed"]
    result = {
        "name": "try", "command": "athanor ablate", "recipe": "default", "extent": "2 min", "seeds": [0, 1, 2],
        "scored_tokens": 5000, "machine": {"processor": "CPU", "cores": 2}, "arms": rows,
        "failed": [{"arm": "broken", "seed": 0, "error": "it diverged"}],
    }  # fmt: skip
    text = markdown(result)
    assert "| a\\|b | 1.9997 |" in text
    assert "- a|b: -4.8%, gain: lower by more than two standard deviations" in text
    assert "- broken, seed 0, failed: it diverged" in text
