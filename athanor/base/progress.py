"""What a person sees while they wait: progress bars with rate and remaining time, sentences, and readable numbers.

Everything goes to standard error, since standard output belongs to `--json`. A terminal gets one live block of bars
(rich); a log gets a plain line per bar at most every ten seconds; ATHANOR_QUIET=1 or `set_quiet` silences both.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

_LINE_EVERY = 10.0  # seconds between lines of a log
_RATE_WINDOW = 30.0  # seconds over which the rate is taken, so that the remaining time follows a change of speed
_SAMPLE_EVERY = 0.5

_quiet = False
_live: list[Bar] = []  # the bars on the terminal, outermost first


def set_quiet(quiet: bool) -> None:
    """Whether this process keeps silent on standard error."""
    global _quiet
    _quiet = quiet


def is_quiet() -> bool:
    return _quiet or os.environ.get("ATHANOR_QUIET") == "1"


def say(message: str) -> None:
    """One line for the person at the keyboard; above the bars where there are some."""
    if not is_quiet():
        with suppress(OSError):  # a log on a full disk must not end the work
            print(message, file=sys.stderr, flush=True)


class Bar:
    """The state of one piece of work. Made by `progress`."""

    def __init__(self, description: str, total: float | None, unit: str) -> None:
        self.description, self.total, self.unit = description, total, unit
        self.completed = 0.0
        self.fields: dict[str, Any] = {}
        self._started = time.monotonic()
        self._samples: deque[tuple[float, float]] = deque([(self._started, 0.0)])
        self._line_due = self._started + _LINE_EVERY
        self._prints_lines = False

    def update(self, n: float = 1, *, completed: float | None = None, **fields: Any) -> None:
        """Adds `n`, or sets what is completed; `fields` (numbers or short texts) are shown until replaced.

        What the very first call sets as completed is where the work continues from, and does not count in its rate.
        """
        now = time.monotonic()
        if completed is not None and self.completed == 0 and len(self._samples) == 1:
            self._samples = deque([(now, completed)])
        self.completed = self.completed + n if completed is None else completed
        self.fields.update(fields)
        if now - self._samples[-1][0] >= _SAMPLE_EVERY:
            self._samples.append((now, self.completed))
            while now - self._samples[0][0] > _RATE_WINDOW and len(self._samples) > 2:
                self._samples.popleft()
        if self._prints_lines and now >= self._line_due:
            self._line_due = now + _LINE_EVERY
            say(f"{self.description}: {self.details()}")

    def set_total(self, total: float | None) -> None:
        self.total = total

    def rate(self) -> float:
        """Units per second over the last half minute; 0 before anything is known."""
        (since, before), now = self._samples[0], time.monotonic()
        return max(0.0, self.completed - before) / (now - since) if now > since else 0.0

    def details(self) -> str:
        """For example "120/400 step · 30 % · 2.5 step/s · 1 min 52 s left · loss 3.214"."""
        amount = size if self.unit == "B" else quantity
        done, unit, rate = amount(self.completed), "" if self.unit in ("", "B") else f" {self.unit}", self.rate()
        parts = [f"{done}/{amount(self.total)}{unit}" if self.total else f"{done}{unit}"]
        if self.total:
            parts.append(f"{min(1.0, self.completed / self.total):.0%}".replace("%", " %"))
        if rate > 0:
            parts.append(f"{1 / rate:.1f} s/{self.unit}" if self.unit and rate < 0.5 else f"{amount(rate)}{unit}/s")
        if self.total and self.completed >= self.total:
            parts.append(duration(time.monotonic() - self._started))
        elif self.total and rate > 0:
            parts.append(f"{duration((self.total - self.completed) / rate)} left")
        shown = (
            f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in self.fields.items()
        )
        return " · ".join([*parts, *shown])


@contextmanager
def progress(description: str, total: float | None = None, unit: str = "") -> Iterator[Bar]:
    """Shows a bar while the block runs. unit: what is counted ("step", "document"), "B" for bytes, or nothing.

    Bars may be nested: inner ones stand below the outer ones and vanish when they end.
    """
    bar = Bar(description, total, unit)
    if is_quiet():
        yield bar
    elif not _on_terminal():
        bar._prints_lines = True
        yield bar
    elif _live:
        _live.append(bar)
        try:
            yield bar
        finally:
            _live.remove(bar)
    else:
        with _drawing(bar):
            yield bar


@contextmanager
def _drawing(bar: Bar) -> Iterator[None]:
    from rich.console import Console
    from rich.live import Live

    _live.append(bar)
    try:  # standard output is not redirected: it may be piped into a program
        with Live(console=Console(stderr=True), get_renderable=_render, refresh_per_second=4, redirect_stdout=False):
            yield
    finally:
        _live.clear()


def _render() -> Table:
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 1))
    table.add_column(no_wrap=True)
    table.add_column(width=20)
    table.add_column(no_wrap=True, overflow="ellipsis")
    for bar in list(_live):
        drawn = ProgressBar(total=bar.total, completed=bar.completed, width=20, pulse=bar.total is None)
        table.add_row(Text(bar.description), drawn, Text(bar.details()))
    return table


def _on_terminal() -> bool:
    return sys.stderr.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")


def duration(seconds: float) -> str:
    """The two largest units: "3.2 s", "3 min 20 s", "2 h 5 min", "1 d 3 h"."""
    if not math.isfinite(seconds):
        return "unknown time"
    seconds = max(0.0, seconds)
    if round(seconds, 1) < 10:
        return f"{seconds:.1f} s".replace(".0 s", " s")
    whole = round(seconds)
    if whole >= 3600:  # the third unit is not shown, so it is rounded away first
        whole = round(whole / 60) * 60
    days, hours, minutes = whole // 86400, whole // 3600 % 24, whole // 60 % 60
    units = [(days, "d"), (hours, "h"), (minutes, "min"), (whole % 60, "s")]
    first = next(i for i, (count, _) in enumerate(units) if count)
    return " ".join(f"{count} {name}" for count, name in units[first : first + 2] if count)


def quantity(n: float) -> str:
    """For example "7", "3.4", "999", "1.2 k", "37 M", "1.5 B"."""
    return _scaled(n, ("", " k", " M", " B", " T"))


def size(byte_count: float) -> str:
    """Decimal units: "999 B", "1.2 kB", "37 MB", "1.5 GB"."""
    return _scaled(byte_count, (" B", " kB", " MB", " GB", " TB"))


def _scaled(number: float, units: tuple[str, ...]) -> str:
    if not math.isfinite(number):
        return f"{number}{units[0]}"
    for power, unit in enumerate(units):
        value = number / 1000**power
        digits = 1 if abs(value) < 9.95 and (power or value != round(value)) else 0
        text = f"{value:.{digits}f}"
        if abs(float(text)) < 1000 or power == len(units) - 1:
            return text + unit
    raise AssertionError
