"""The report's plots: one small panel a question, each drawn from the checked report and the stages' logs.

A panel whose data were not measured is not drawn; `draw_figures` returns those that were, by name. All text in a panel
is a number or a name from the report; samples never reach a plot.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from athanor.base.progress import duration
from athanor.evaluation.report.curves import Curve, Rows, curve, read_log
from athanor.evaluation.report.drawing import LARGE, PALETTE, SMALL, Drawing, new_figure, plain_label, render
from athanor.evaluation.report.schema import ByStage, Interval, Report
from athanor.evaluation.report.words import STAGE_LABELS, in_order, language

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOGGED_STAGES = ("pretrain", "sft", "rl", "control")
_CLOCK_STEPS = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 21600, 43200, 86400)  # seconds
_TICK_STEPS = [1, 2, 2.5, 5, 10]
_ROW, _LEAST_HEIGHT = 0.4, 2.0  # inches: a row of a horizontal plot, the whole of one with few rows


@dataclass(frozen=True)
class Logs:
    """What the run folder's logs hold, by stage."""

    metrics: dict[str, Rows]
    timing: dict[str, Rows]

    def curve(self, stage: str, key: str) -> Curve:
        return curve(self.metrics[stage], key)


def read_logs(run_folder: Path) -> Logs:
    def read(name: str) -> dict[str, Rows]:
        return {stage: read_log(run_folder / stage / name) for stage in LOGGED_STAGES}

    return Logs(read("metrics.jsonl"), read("timing.jsonl"))


@dataclass(frozen=True)
class Plot:
    """title: what is on the y axis or compared; tall: takes the place of two panels, one above the other."""

    name: str
    title: str
    description: str
    drawing: Drawing
    tall: bool = False


Draw = Callable[[Report, Logs], "Figure | None"]


@dataclass(frozen=True)
class _Panel:
    title: str
    description: str
    draw: Draw


def draw_figures(report: Report, logs: Logs) -> dict[str, Plot]:
    plots = {}
    for name, panel in _PANELS.items():
        if (drawing := render(name, partial(panel.draw, report, logs))) is not None:
            plots[name] = Plot(name, panel.title, panel.description, drawing, drawing.height > 1.3 * LARGE[1])
    return plots


def _steps_axis(axes: Axes, ticks: int = 5) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(ticks, integer=True, steps=_TICK_STEPS))
    axes.yaxis.set_major_locator(MaxNLocator(ticks, steps=_TICK_STEPS))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_xlabel("step", color=PALETTE["muted"])


def _draw_curve(axes: Axes, data: Curve, colour: str, label: str | None = None) -> None:
    axes.plot(data.steps, data.values, color=colour, linewidth=0.8, alpha=0.45)
    axes.plot(data.steps, data.trend, color=colour, linewidth=1.8, label=label, solid_capstyle="round")


def _legend(axes: Axes, columns: int = 4) -> None:
    axes.figure.legend(
        loc="outside upper left", ncols=columns, frameon=False, labelcolor=PALETTE["muted"],
        handlelength=1.1, handletextpad=0.5, columnspacing=1.4, borderaxespad=0.2,
    )  # fmt: skip


def _single_curve(stage: str, key: str, colour: str, size: tuple[float, float] = LARGE) -> Draw:
    def draw(_: Report, logs: Logs) -> Figure | None:
        data = logs.curve(stage, key)
        if not data:
            return None
        figure, axes = new_figure(size)
        _draw_curve(axes, data, PALETTE[colour])
        _steps_axis(axes, ticks=5 if size is LARGE else 4)
        return figure

    return draw


def _pretrain_bits(report: Report, logs: Logs) -> Figure | None:
    points = curve(logs.metrics["pretrain"], "bits_per_byte")
    if not points:
        return None
    figure, axes = new_figure()
    axes.plot(
        points.steps, points.values, color=PALETTE["base"], linewidth=1.6, marker="o", markersize=4.5,
        markeredgecolor=PALETTE["card"], markeredgewidth=1, label="model",
    )  # fmt: skip
    lines = (
        ("Kneser-Ney, same tokens", report.baselines.kneser_ney_same_tokens, (0, (5, 3))),
        ("Kneser-Ney, all text", report.baselines.kneser_ney_all_text, (0, (1.2, 2.2))),
    )
    for label, value, dashes in lines:
        if value is not None:
            axes.axhline(value, color=PALETTE["muted"], linewidth=1.3, linestyle=dashes, label=label)
    _steps_axis(axes)
    _legend(axes)
    return figure


def _sft_loss(_: Report, logs: Logs) -> Figure | None:
    """The control goes on where fine-tuning ended, so its steps follow."""
    tuned, control = logs.curve("sft", "loss"), logs.curve("control", "loss")
    if not tuned and not control:
        return None
    figure, axes = new_figure()
    for data, colour, label in ((tuned, "sft", "fine-tuning"), (control, "control", "continued (control)")):
        if data:
            after = tuned.steps[-1] if tuned and data is control else 0.0
            _draw_curve(axes, data.shifted(after), PALETTE[colour], label)
    _steps_axis(axes)
    _legend(axes)
    return figure


def _rows_figure(labels: Sequence[str]) -> tuple[Figure, Axes]:
    """A horizontal plot: row 0 on top."""
    figure, axes = new_figure((LARGE[0], max(_LEAST_HEIGHT, _ROW * len(labels) + 0.75)))
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color=PALETTE["line"], linewidth=0.8)
    axes.set_yticks(range(len(labels)), [plain_label(label) for label in labels])
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.tick_params(axis="y", labelcolor=PALETTE["ink"])
    return figure, axes


def _percent_axis(axes: Axes) -> None:
    axes.set_xlim(-0.02, 1.02)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25", "50", "75", "100 %"])


def _bits_bars(values: Mapping[str, ByStage]) -> Figure | None:
    stages = [s for s in ("base", "sft", "rl") if any(getattr(v, s) is not None for v in values.values())]
    if not stages:
        return None
    figure, axes = new_figure((LARGE[0], max(_LEAST_HEIGHT, (0.18 * len(stages) + 0.16) * len(values) + 0.75)))
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color=PALETTE["line"], linewidth=0.8)
    thickness = 0.78 / len(stages)
    for place, stage in enumerate(stages):
        shift = (place - (len(stages) - 1) / 2) * thickness
        found = [
            (row + shift, getattr(v, stage)) for row, v in enumerate(values.values()) if getattr(v, stage) is not None
        ]
        axes.barh(
            [row for row, _ in found], [value for _, value in found], height=thickness * 0.82,
            color=PALETTE[stage], label=STAGE_LABELS[stage],
        )  # fmt: skip
    axes.set_yticks(range(len(values)), [plain_label(language(name)) for name in values])
    axes.set_ylim(len(values) - 0.45, -0.55)
    axes.tick_params(axis="y", labelcolor=PALETTE["ink"])
    _legend(axes)
    return figure


def _bits_by_source(report: Report, _: Logs) -> Figure | None:
    return _bits_bars(report.heldout_bits_per_byte.by_source) if report.heldout_bits_per_byte else None


def _bits_by_language(report: Report, _: Logs) -> Figure | None:
    return _bits_bars(report.heldout_bits_per_byte.by_language) if report.heldout_bits_per_byte else None


def _exact_match(report: Report, _: Logs) -> Figure | None:
    tasks = {**report.sft.exact_match, "all tasks": report.sft.overall} if report.sft else {}
    stages = in_order({stage for results in tasks.values() for stage in results})
    if not stages:
        return None
    figure, axes = _rows_figure(list(tasks))
    spread = 0.28 if len(stages) > 1 else 0.0
    for place, stage in enumerate(stages):
        colour = PALETTE.get(stage, PALETTE["muted"])
        shift = (place / max(1, len(stages) - 1) - 0.5) * spread
        found = [(row, results[stage]) for row, results in enumerate(tasks.values()) if stage in results]
        label = plain_label(STAGE_LABELS.get(stage, stage))
        _whiskers(axes, [(row + shift, r.value, r.ci95) for row, r in found], colour, label)
    _percent_axis(axes)
    _legend(axes)
    return figure


def _whiskers(axes: Axes, rows: Sequence[tuple[float, float | None, Interval]], colour: str, label: str | None) -> None:
    """Rows (y, value, interval); a value of None is an interval alone, marked at its middle."""
    places = [y for y, _, _ in rows]
    axes.hlines(places, [i[0] for *_, i in rows], [i[1] for *_, i in rows], color=colour, linewidth=1.6, alpha=0.55)
    dots = [sum(interval) / 2 if value is None else value for _, value, interval in rows]
    axes.plot(
        dots, places, linestyle="none", marker="o", markersize=7, color=colour, label=label,
        markeredgecolor=PALETTE["card"], markeredgewidth=1,
    )  # fmt: skip


def _rl_by_task(report: Report, _: Logs) -> Figure | None:
    """A line from before to after, with the control as a tick between them."""
    tasks = report.rl.by_task if report.rl else {}
    if not tasks:
        return None
    figure, axes = _rows_figure(list(tasks))
    for row, task in enumerate(tasks.values()):
        if task.before is not None and task.after is not None:
            axes.plot([task.before, task.after], [row, row], color=PALETTE["line"], linewidth=3, zorder=1)
    marks = (("before", "sft", "o", "before"), ("control", "control", "d", "control"), ("after", "rl", "o", "after"))
    for key, colour, marker, label in marks:
        found = [(getattr(task, key), row) for row, task in enumerate(tasks.values()) if getattr(task, key) is not None]
        if found:
            axes.plot(
                [value for value, _ in found], [row for _, row in found], linestyle="none", marker=marker,
                markersize=8 if marker == "o" else 7, color=PALETTE[colour], label=label,
                markeredgecolor=PALETTE["card"], markeredgewidth=1,
            )  # fmt: skip
    _percent_axis(axes)
    _legend(axes)
    return figure


def _rl_gains(report: Report, _: Logs) -> Figure | None:
    if report.rl is None:
        return None
    rows: list[tuple[str, float | None, Interval]] = []
    for name, result in (("pass@1", report.rl.pass_at_1), ("pass@8", report.rl.pass_at_8)):
        for other in ("before", "control"):
            interval = getattr(result.difference_ci95, f"after_minus_{other}")
            start = getattr(result, other)
            value = None if result.after is None or start is None else 100 * (result.after - start)
            if interval is not None:
                over = "its start" if other == "before" else "control"
                rows.append((f"{name} over {over}", value, (100 * interval[0], 100 * interval[1])))
    if not rows:
        return None
    figure, axes = _rows_figure([label for label, _, _ in rows])
    axes.axvline(0, color=PALETTE["muted"], linewidth=1.1)
    _whiskers(axes, [(float(row), value, i) for row, (_, value, i) in enumerate(rows)], PALETTE["rl"], None)
    low = min(0.0, *(interval[0] for *_, interval in rows))
    high = max(0.0, *(interval[1] for *_, interval in rows))
    margin = max(1.0, 0.05 * (high - low))
    axes.set_xlim(low - margin, high + margin)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:+g}" if value else "0")
    axes.set_xlabel("percentage points", color=PALETTE["muted"])
    return figure


def _speed(_: Report, logs: Logs) -> Figure | None:
    data = curve(logs.timing["pretrain"], "tokens_per_second")
    if not data:
        return None
    figure, axes = new_figure()
    _draw_curve(axes, data, PALETTE["base"])
    _steps_axis(axes)
    axes.set_ylim(0, 1.08 * data.values.max())
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    return figure


def _time(report: Report, _: Logs) -> Figure | None:
    stages = {name: report.timing.stages[name].seconds for name in in_order(report.timing.stages)}
    if not sum(stages.values()):
        return None
    figure, axes = _rows_figure(list(stages))
    total = sum(stages.values())
    colours = {"pretrain": PALETTE["base"], **PALETTE}
    left = 0.0
    for row, (name, seconds) in enumerate(stages.items()):
        axes.barh(row, seconds, left=left, height=0.62, color=colours.get(name, PALETTE["muted"]))
        beside, align = (left + seconds, "left") if left + seconds < 0.8 * total else (left, "right")
        axes.annotate(
            f"{100 * seconds / total:.0f} %", (beside, row), (4 if align == "left" else -4, 0),
            textcoords="offset points", ha=align, va="center", color=PALETTE["muted"],
        )  # fmt: skip
        left += seconds
    axes.set_xlim(0, total)
    step = next((step for step in _CLOCK_STEPS if total / step <= 6), total / 6)
    ticks = [step * i for i in range(int(total / step) + 1)]
    axes.set_xticks(ticks, [duration(tick) if tick else "0" for tick in ticks])
    return figure


_PANELS: dict[str, _Panel] = {
    "pretrain-loss": _Panel(
        "Pre-training loss, nats a token",
        "Loss of each step and its trend.",
        _single_curve("pretrain", "loss", "base"),
    ),
    "pretrain-bits": _Panel(
        "Held-out bits per byte",
        "Measured during pre-training, with the Kneser-Ney 5-gram as lines.",
        _pretrain_bits,
    ),
    "sft-loss": _Panel(
        "Fine-tuning loss, nats a token",
        "Loss on the assistant's words; the control continues it.",
        _sft_loss,
    ),
    "rl-reward": _Panel("Reward", "Mean reward of each step's answers.", _single_curve("rl", "reward", "rl")),
    "rl-zero-variance": _Panel(
        "Groups without variance",
        "Problems whose answers all scored alike.",
        _single_curve("rl", "zero_variance", "rl", SMALL),
    ),
    "rl-entropy": _Panel(
        "Entropy, nats",
        "How undecided the model is about the next token.",
        _single_curve("rl", "entropy", "rl", SMALL),
    ),
    "rl-length": _Panel("Length, tokens", "Mean length of an answer.", _single_curve("rl", "length", "rl", SMALL)),
    "rl-kl": _Panel(
        "KL to the start, nats",
        "How far the model has moved from the fine-tuned one.",
        _single_curve("rl", "kl", "rl", SMALL),
    ),
    "bits-by-source": _Panel("By source, bits per byte", "Held-out text, by source and stage.", _bits_by_source),
    "bits-by-language": _Panel(
        "By language, bits per byte", "Held-out text, by language and stage.", _bits_by_language
    ),
    "exact-match": _Panel(
        "Exact match, with 95 % intervals",
        "Share of exactly right answers by task and stage.",
        _exact_match,
    ),
    "rl-gains": _Panel(
        "Gain, with 95 % intervals",
        "What reinforcement learning added to pass@1 and pass@8.",
        _rl_gains,
    ),
    "rl-by-task": _Panel("pass@1 by task", "Before, after, and the control of equal compute.", _rl_by_task),
    "time": _Panel("Time by stage", "When each stage ran and how long it took.", _time),
    "speed": _Panel("Pre-training speed, tokens/s", "Tokens a second at each step and the trend.", _speed),
}
