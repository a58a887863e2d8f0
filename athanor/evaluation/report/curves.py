"""Training curves: the lines of a stage's `metrics.jsonl` and `timing.jsonl`, thinned to what a plot can show.

A run of days logs a line for each of many thousand steps; a curve keeps at most 400 points, each the mean of a stretch
of equal length, and a moving average over a twentieth of them shows the trend.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

_MOST_POINTS = 400
_TREND_SHARE = 1 / 20

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Curve:
    """steps, values, trend: (points,) float64; empty when nothing was logged."""

    steps: np.ndarray
    values: np.ndarray
    trend: np.ndarray

    def __bool__(self) -> bool:
        return self.steps.size > 0

    def shifted(self, steps: float) -> Curve:
        return Curve(self.steps + steps, self.values, self.trend)


def read_log(path: Path) -> Rows:
    """The lines that are JSON objects with a step; a missing file is an empty log."""
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and _finite(row.get("step")):
            rows.append(row)
    return rows


def curve(rows: Rows, key: str) -> Curve:
    points = [(row["step"], row[key]) for row in rows if _finite(row.get(key))]
    steps, values = np.array(points, dtype=np.float64).reshape(-1, 2).T
    steps, values = _thin(steps), _thin(values)
    return Curve(steps, values, _moving_average(values))


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _thin(values: np.ndarray) -> np.ndarray:
    if values.size <= _MOST_POINTS:
        return values
    edges = np.linspace(0, values.size, _MOST_POINTS + 1).astype(int)
    return np.array([values[start:end].mean() for start, end in pairwise(edges)])


def _moving_average(values: np.ndarray) -> np.ndarray:
    """Centred. The window shrinks to one point at the start, where a loss falls steeply; at the end it is cut off."""
    half = int(values.size * _TREND_SHARE / 2)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    middle = np.arange(values.size)
    half_here = np.minimum(half, middle)
    start, end = middle - half_here, np.minimum(middle + half_here + 1, values.size)
    return (sums[end] - sums[start]) / (end - start)
