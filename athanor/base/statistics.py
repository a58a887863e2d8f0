"""Intervals and tests for honest numbers: Wilson intervals, (paired) bootstrap, paired t, unbiased pass@k."""

from __future__ import annotations

from collections.abc import Sequence
from math import atan, cos, pi, sin, sqrt

import numpy as np

from athanor.base.randomness import generator

_Z95 = 1.959963984540054


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """95 % interval of a proportion (Wilson 1927). (0, 1) when there were no trials."""
    if trials == 0:
        return 0.0, 1.0
    share = successes / trials
    scale = 1 + _Z95**2 / trials
    centre = (share + _Z95**2 / (2 * trials)) / scale
    half = _Z95 * sqrt(share * (1 - share) / trials + _Z95**2 / (4 * trials**2)) / scale
    return max(0.0, centre - half), min(1.0, centre + half)


def bootstrap_mean(values: Sequence[float] | np.ndarray, seed: int = 0, resamples: int = 10_000) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean; for a paired difference pass the differences (one a problem)."""
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0:
        return float("nan"), float("nan")
    random = generator(seed, "bootstrap")
    means = np.empty(resamples)
    rows = max(1, min(500, 4_000_000 // array.size))  # bounds memory; the draws are the same for any number of rows
    for start in range(0, resamples, rows):
        picks = random.integers(0, array.size, size=(min(rows, resamples - start), array.size))
        means[start : start + len(picks)] = array[picks].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def student_t(freedom: int) -> float:
    """The 97.5 % quantile of Student's t with `freedom` ≥ 1 degrees of freedom: by bisection of its distribution, which
    is a finite sum (Abramowitz and Stegun 1964, 26.7.3 and 26.7.4).
    """
    low, high = 0.0, 20.0  # 12.706 is the largest
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, freedom) < 0.95 else (low, middle)
    return (low + high) / 2


def _within(t: float, freedom: int) -> float:
    """Probability that Student's t lies between −t and t."""
    angle, odd = atan(t / sqrt(freedom)), freedom % 2
    term, total = (cos(angle) if odd else 1.0), 0.0
    for power in range(2 + odd, freedom + 1, 2):
        total += term
        term *= cos(angle) ** 2 * (power - 1) / power
    return 2 / pi * (angle + sin(angle) * total) if odd else sin(angle) * total


def paired_t(differences: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """95 % interval of the mean of paired differences (Student 1908). Two of them at least."""
    array = np.asarray(differences, dtype=np.float64)
    half = student_t(array.size - 1) * float(array.std(ddof=1)) / sqrt(array.size)
    return float(array.mean()) - half, float(array.mean()) + half


def pass_at_k(correct: np.ndarray, samples: int, k: int) -> np.ndarray:
    """Unbiased pass@k of each problem (Chen et al. 2021): 1 − C(n−c, k) / C(n, k).

    correct: (problems,) number of correct answers among `samples`; returns (problems,) float64.
    """
    if not 1 <= k <= samples:
        raise ValueError(f"pass@{k} needs at least {k} samples a problem, there are {samples}")
    wrong = samples - np.asarray(correct, dtype=np.int64)
    result = np.ones(wrong.shape, dtype=np.float64)
    for i in range(k):
        result *= np.clip(wrong - i, 0, None) / (samples - i)
    return 1.0 - result
