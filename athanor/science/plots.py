"""Pictures of several runs: training curves side by side, and an experiment's differences.

Written as PNG on a light card, which reads on any page, and as SVG that follows the reader into the dark. Colours are
told apart by people who do not see all of them (after Okabe and Ito 2008), and each line is named where it ends.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from athanor.base.files import atomic_path, write_text
from athanor.base.progress import duration, quantity
from athanor.evaluation.report.curves import Curve, Rows, curve, read_log
from athanor.evaluation.report.drawing import PALETTE, plain_label, render, rendering, style_axes
from athanor.science.history import Group

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Light values and what they become on a dark page.
SERIES = {
    "#3d3a36": "#d9d4c9",
    "#0072b2": "#56b4e9",
    "#d55e00": "#ff9550",
    "#00876a": "#3fd0aa",
    "#b14a8b": "#e9a3cf",
    "#9a7400": "#efc04a",
    "#5c4fc4": "#a89cf5",
}
_DARK = {
    **SERIES,
    PALETTE["ink"]: "#e9e5dc",
    PALETTE["muted"]: "#a19b8f",
    PALETTE["line"]: "#35322d",
    PALETTE["card"]: "#1f1e1b",
}
_DASHES = ("solid", (0, (5, 2)), (0, (1.5, 1.5)))
_LOSS, _BITS = "training loss, nats per token", "held-out bits per byte"
_FEW = 30  # points that are drawn as such
_GAP = 0.062  # of an axis' height, between the names of two lines


@dataclass(frozen=True)
class Lines:
    """One run's curves. tokens, seconds: (steps,) of training so far, by step."""

    group: int
    loss: Rows
    bits: Rows


def read_lines(group: int, folder: Path) -> Lines:
    """The pre-training logs of a run, each row with the tokens and active seconds at which it was written."""
    stage = folder / "pretrain"
    reached: dict[float, tuple[float, float]] = {}
    tokens = seconds = 0.0
    for row in read_log(stage / "timing.jsonl"):
        taken, rate = row.get("seconds"), row.get("tokens_per_second")
        if isinstance(taken, int | float) and isinstance(rate, int | float):
            tokens, seconds = tokens + taken * rate, seconds + taken
            reached[row["step"]] = (tokens, seconds)
    rows = [{**row, "tokens": reached[row["step"]][0], "seconds": reached[row["step"]][1]}
            for row in read_log(stage / "metrics.jsonl") if row["step"] in reached]  # fmt: skip
    return Lines(group, [row for row in rows if "loss" in row], [row for row in rows if "bits_per_byte" in row])


def draw_runs(groups: Sequence[Group], path: Path) -> list[Path]:
    """Loss and held-out bits per byte over tokens and over time. path: of the PNG; the SVG is written beside it.

    A group has one colour; where it has several runs, its curve is their mean and each run a faint line.
    """
    lines = [read_lines(number, folder) for number, group in enumerate(groups) for folder in group.folders]
    rows = [(_LOSS, "loss"), (_BITS, "bits_per_byte")] if any(line.bits for line in lines) else [(_LOSS, "loss")]
    names = _names([group.name for group in groups])

    def draw() -> Figure:
        figure = _figure(4.3 * len(rows))
        panels = figure.subplots(len(rows), 2, squeeze=False)
        for (title, key), (left, right) in zip(rows, panels, strict=True):
            _panel(left, lines, names, key, "tokens", title)
            _panel(right, lines, names, key, "seconds", title)
        return figure

    return _save(path, draw)


def draw_experiment(result: Mapping[str, Any], folder: Path) -> list[Path]:
    """Held-out bits per byte along the way, and the paired differences with their intervals: results.png and .svg."""
    names = [row["name"] for row in result["arms"]]
    folders = [sorted((folder / result["folders"][name]).glob("seed-*")) for name in names]
    seeds = {f"seed-{seed}" for seed in result["seeds"]}
    lines = [read_lines(number, run) for number, runs in enumerate(folders) for run in runs if run.name in seeds]
    x = "seconds" if result["by"] == "time" else "tokens"

    def draw() -> Figure:
        figure = _figure(max(4.3, 1.8 + 0.5 * len(names)))
        left, right = figure.subplots(1, 2)
        _panel(left, lines, _names(names), "bits_per_byte", x, _BITS)
        _differences(right, result["arms"])
        return figure

    return _save(folder / "results.png", draw)


def _figure(height: float) -> Figure:
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    engine = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12, wspace=0.04, hspace=0.05)
    return Figure(figsize=(12, height), layout=engine, facecolor=PALETTE["card"])


def _panel(axes: Axes, lines: Sequence[Lines], names: Sequence[str], key: str, x: str, title: str) -> None:
    style_axes(axes)
    axes.set_title(title, loc="left", color=PALETTE["ink"], fontsize=11.5, pad=10)
    ends: list[tuple[float, float, int]] = []
    lowest, highest = [], []
    for group in range(len(names)):
        found = [_curve(line, key, x) for line in lines if line.group == group]
        found = [data for data in found if data]
        if not found:
            continue
        style: dict[str, Any] = {"color": _colour(group), "linestyle": _DASHES[group // len(SERIES) % len(_DASHES)]}
        mean = _mean(found)
        for data in found if len(found) > 1 or key == "loss" else []:
            axes.plot(data.steps, data.values, color=_colour(group), linewidth=0.7, alpha=0.3)
        if key == "bits_per_byte" and mean.steps.size <= _FEW:
            style |= {"marker": "o", "markersize": 4}
        axes.plot(mean.steps, mean.trend, linewidth=2, solid_capstyle="round", **style)
        ends.append((float(mean.trend[-1]), float(mean.steps[-1]), group))
        lowest.append(float(mean.trend.min()))
        highest.append(float(np.quantile(mean.values, 0.97)))
    if ends:
        _limits(axes, min(lowest), max(highest), max(end for _, end, _ in ends))
        _name_lines(axes, ends, names)
    _amounts(axes, x)


def _curve(line: Lines, key: str, x: str) -> Curve:
    """Held-out figures are few and already means: only losses are smoothed."""
    rows = line.loss if key == "loss" else line.bits
    data = curve([{**row, "step": row[x]} for row in rows], key)
    return data if key == "loss" else Curve(data.steps, data.values, data.values)


def _mean(curves: Sequence[Curve]) -> Curve:
    """Over runs that need not have logged at the same places; as far as the shortest goes."""
    if len(curves) == 1:
        return curves[0]
    longest = max(curves, key=lambda data: data.steps.size)
    start, end = max(data.steps[0] for data in curves), min(data.steps[-1] for data in curves)
    inside = (longest.steps > start) & (longest.steps < end)
    steps = np.concatenate([[start], longest.steps[inside], [end]]) if end > start else np.array([end])
    values, trend = (
        np.mean([np.interp(steps, data.steps, getattr(data, name)) for data in curves], axis=0)
        for name in ("values", "trend")
    )
    return Curve(steps, values, trend)


def _limits(axes: Axes, low: float, high: float, end: float) -> None:
    """The first few steps, far above the rest, are cut off at the top."""
    room = max(high - low, 1e-3)
    axes.set_ylim(low - 0.08 * room, high + 0.05 * room)
    axes.set_xlim(0, end)


def _name_lines(axes: Axes, ends: Sequence[tuple[float, float, int]], names: Sequence[str]) -> None:
    """Each line's name at its end, moved apart where they would overlap."""
    bottom, top = axes.get_ylim()
    order = sorted(ends)
    places = [(value - bottom) / (top - bottom) for value, _, _ in order]
    for number in range(1, len(places)):
        places[number] = max(places[number], places[number - 1] + _GAP)
    for place, (value, _, group) in zip(places, order, strict=True):
        axes.annotate(
            f"{names[group]}  {value:.3f}", (1.0, place), xycoords="axes fraction", xytext=(8, 0),
            textcoords="offset points", color=_colour(group), fontsize=10, va="center", annotation_clip=False,
        )  # fmt: skip


def _amounts(axes: Axes, x: str) -> None:
    from matplotlib.ticker import MaxNLocator

    show = (lambda value: quantity(value)) if x == "tokens" else duration
    steps = [1, 2, 2.5, 5, 10] if x == "tokens" else [1, 1.5, 2, 3, 6, 10]
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=steps))
    axes.xaxis.set_major_formatter(lambda value, _: "0" if value == 0 else show(value))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel("tokens read" if x == "tokens" else "time spent training", color=PALETTE["muted"])


def _differences(axes: Axes, arms: Sequence[Mapping[str, Any]]) -> None:
    """A row an arm: the pairs as dots, the mean as a line, the interval as a bar; left of zero is better."""
    style_axes(axes)
    base = arms[0]["bits_per_byte"]["by_seed"]
    axes.set_title(
        "difference from the baseline, bits per byte", loc="left", color=PALETTE["ink"], fontsize=11.5, pad=10
    )
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color=PALETTE["line"], linewidth=0.8)
    axes.axvline(0, color=PALETTE["muted"], linewidth=1.2)
    reach = [0.0]
    for row, arm in enumerate(arms[1:], start=1):
        found, colour = arm["difference"], _colour(row)
        if found is None:
            continue
        by_seed = arm["bits_per_byte"]["by_seed"]
        pairs = [by_seed[seed] - base[seed] for seed in base if seed in by_seed]
        reach += [*pairs, *((min(max(bound, 3 * min(pairs) - 2 * max(pairs)), 3 * max(pairs) - 2 * min(pairs)))
                            for bound in found["ci95"] or ())]  # fmt: skip
        if found["ci95"]:
            axes.plot(found["ci95"], [row, row], color=colour, linewidth=9, alpha=0.22, solid_capstyle="butt")
        axes.plot(pairs, [row] * len(pairs), "o", color=colour, markersize=5, alpha=0.75, markeredgewidth=0)
        axes.plot([found["mean"]] * 2, [row - 0.17, row + 0.17], color=colour, linewidth=2.4)
        axes.annotate(
            f"{plain_label(arm['name'], 34)}   {found['mean']:+.4f}, {found['verdict']}", (0.0, row), xytext=(4, 17),
            xycoords=("axes fraction", "data"), textcoords="offset points", color=colour, fontsize=10, va="center",
            bbox={"facecolor": PALETTE["card"], "edgecolor": "none", "pad": 1.5},
        )  # fmt: skip
    room = max(max(reach) - min(reach), 1e-6) * 0.12
    axes.set_xlim(min(reach) - room, max(reach) + room)
    axes.set_ylim(len(arms) - 0.5, 0.3)
    axes.set_yticks([])
    axes.set_xlabel("← better        worse →", color=PALETTE["muted"])


def _names(names: Sequence[str], longest: int = 24) -> list[str]:
    """What tells the groups apart: without the folders that all have in common, if there are any."""
    parts = [name.split("/") for name in names]
    while len(parts) > 1 and all(len(part) > 1 and part[0] == parts[0][0] for part in parts):
        parts = [part[1:] for part in parts]
    whole = ["/".join(part) for part in parts]
    short = [re.sub(r"(?:\w+\.)+(?=\w+=)", "", name) for name in whole]  # a setting by its last word
    return [plain_label(name, longest) for name in (short if len(set(short)) == len(short) else whole)]


def _colour(number: int) -> str:
    return list(SERIES)[number % len(SERIES)]


def _save(path: Path, draw: Callable[[], Figure]) -> list[Path]:
    """PNG at `path` and SVG beside it."""
    svg, stem = path.with_suffix(".svg"), re.sub(r"[^a-z0-9]+", "-", path.stem.lower()).strip("-") or "plot"
    with rendering(stem), atomic_path(path) as temporary:
        draw().savefig(temporary, format="png", dpi=160, facecolor=PALETTE["card"])
    drawing = render(stem, partial(draw))
    assert drawing is not None
    write_text(svg, _follow_reader(drawing.file))
    return [path, svg]


def _follow_reader(svg: str) -> str:
    """The SVG with a second set of colours for those who read on a dark page."""
    light = re.findall(r"<style>(.*?)</style>", svg, re.S)[0]
    dark = re.sub("|".join(_DARK), lambda found: _DARK[found[0]], light)
    card = f"svg>rect{{fill:{_DARK[PALETTE['card']]}}}"
    return svg.replace("</style>", f"@media (prefers-color-scheme: dark){{{dark}{card}}}</style>", 1)
