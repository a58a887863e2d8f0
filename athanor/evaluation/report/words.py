"""Numbers and names as a person reads them: percentages, intervals, "not measured", the order of the stages."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import TypeVar

from athanor.base.progress import quantity
from athanor.evaluation.report.schema import Interval, Proportion

T = TypeVar("T")

NOT_MEASURED = "not measured"
_NO_BREAK = "\u00a0"
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ufffe\uffff]")
STAGE_LABELS = {"base": "base", "sft": "after SFT", "rl": "after RL", "control": "control"}
LANGUAGES = {"en": "English", "zh": "Chinese", "und": "undetermined"}
_ORDER = ("corpus", "tokenizer", "shards", "pretrain", "base", "sft", "rl", "control", "evaluate")


def in_order(stages: Iterable[str]) -> list[str]:
    """Known stages in the order of a run, then any others by name."""
    return sorted(stages, key=lambda stage: (_ORDER.index(stage) if stage in _ORDER else len(_ORDER), stage))


def shown(value: T | None, write: Callable[[T], str]) -> str:
    return NOT_MEASURED if value is None else write(value)


def bits(value: float | None) -> str:
    return shown(value, lambda x: f"{x:.3f}")


def percent(value: float | None) -> str:
    return shown(value, lambda x: f"{100 * x:.1f}{_NO_BREAK}%")


def number(value: float | None) -> str:
    return shown(value, lambda x: f"{x:,.0f}")


def flops(count: float) -> str:
    """Powers of ten, as the field compares them: "1.1e14"."""
    return f"{count:.1e}".replace("e+", "e")


def flop_rate(rate: float) -> str:
    return quantity(rate).replace(" B", " G") + "FLOP/s"


def percent_interval(interval: Interval) -> str:
    return f"{100 * interval[0]:.1f} – {100 * interval[1]:.1f}{_NO_BREAK}%"


def proportion(found: Proportion | None) -> str:
    return shown(found, lambda p: f"{percent(p.value)} ({percent_interval(p.ci95)})")


def percent_figures(found: Proportion | None) -> str:
    """For a column in percent: "41.0 (30.9 – 51.1)"."""
    return shown(found, lambda p: f"{100 * p.value:.1f} ({100 * p.ci95[0]:.1f} – {100 * p.ci95[1]:.1f})")


def points(difference: float) -> str:
    """A difference of two shares in percentage points, always signed."""
    return f"{100 * difference:+.1f}".replace("-", "−")


def points_interval(interval: Interval | None) -> str:
    return shown(interval, lambda i: f"{points(i[0])} to {points(i[1])} points")


def joined(words: Iterable[str]) -> str:
    """For example "a", "a and b", "a, b and c"."""
    words = list(words)
    return " and ".join(words) if len(words) < 3 else f"{', '.join(words[:-1])} and {words[-1]}"


def language(code: str) -> str:
    """Names for codes: "English and Chinese" for "en, zh"; an unknown code stays as it is."""
    return joined(LANGUAGES.get(part, part) for part in code.split(", "))


def printable(text: str) -> str:
    """Text without the control characters that no page may hold, and without those that turn the reading direction of
    what follows; each becomes U+FFFD. Newlines and tabs stay."""
    return _UNPRINTABLE.sub("\ufffd", text.replace("\r\n", "\n").replace("\r", "\n"))
