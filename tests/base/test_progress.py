"""Progress is readable on a terminal and in a log, never touches standard output, and can be silenced."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

import pytest

from athanor.base import progress as module
from athanor.base.progress import Bar, duration, progress, quantity, say, set_quiet, size


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    monkeypatch.delenv("ATHANOR_QUIET", raising=False)
    return clock


def test_a_log_gets_one_line_in_ten_seconds(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with progress("Pre-training", total=320, unit="step") as bar:
        for _ in range(200):
            clock.now += 0.125
            bar.update(loss=3.21456)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "Pre-training: 80/320 step · 25 % · 8 step/s · 30 s left · loss 3.215",
        "Pre-training: 160/320 step · 50 % · 8 step/s · 20 s left · loss 3.215",
    ]


def test_short_work_leaves_no_line_in_a_log(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with progress("Counting") as bar:
        bar.update(5)
    assert capsys.readouterr() == ("", "")


def test_work_that_continues_is_rated_by_what_is_new(clock: Clock) -> None:
    bar = Bar("Training", 1000, "step")
    bar.update(completed=900)
    clock.now += 10
    bar.update(completed=910)
    assert bar.rate() == pytest.approx(1)
    assert "1 min 30 s left" in bar.details()


def test_the_rate_follows_a_change_of_speed(clock: Clock) -> None:
    bar = Bar("Training", None, "step")
    for seconds in (0.1, 10.0):
        for _ in range(600 if seconds < 1 else 10):
            clock.now += seconds
            bar.update()
    assert bar.rate() == pytest.approx(0.1, rel=0.4)
    assert "s/step" in bar.details()


def test_bytes_and_unknown_totals() -> None:
    bar = Bar("Fetching", None, "B")
    bar.update(37_000_000)
    assert bar.details().startswith("37 MB")
    bar.set_total(74_000_000)
    assert bar.details().startswith("37 MB/74 MB · 50 %")


def test_quiet(clock: Clock, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def work() -> None:
        say("hello")
        with progress("Working") as bar:
            clock.now += 60
            bar.update(3)
            say("inside")
        assert bar.completed == 3

    set_quiet(True)
    try:
        work()
    finally:
        set_quiet(False)
    monkeypatch.setenv("ATHANOR_QUIET", "1")
    work()
    assert capsys.readouterr() == ("", "")
    monkeypatch.delenv("ATHANOR_QUIET")
    work()
    assert capsys.readouterr() == ("", "hello\nWorking: 3 · 0.1/s\ninside\n")


_ON_TERMINAL = """
import sys, time
from athanor.base.progress import progress, say
with progress("Outer", total=2) as outer:
    with progress("Inner", total=50, unit="step") as inner:
        for i in range(50):
            time.sleep(0.01)
            inner.update(loss=1.5)
        say("a [bold] sentence")
        print('{"result": 1}')
    outer.update(2)
try:
    with progress("Broken"):
        raise ValueError("from inside")
except ValueError:
    say("passed on")
"""


def test_a_terminal_gets_bars_and_standard_output_stays_clean() -> None:
    primary, secondary = pty.openpty()
    environment = {k: v for k, v in os.environ.items() if k not in ("ATHANOR_QUIET", "NO_COLOR")} | {"TERM": "xterm"}
    environment["COLUMNS"] = "100"
    process = subprocess.Popen(
        [sys.executable, "-c", _ON_TERMINAL], stdout=subprocess.PIPE, stderr=secondary, text=True, env=environment
    )
    os.close(secondary)
    drawn = b""
    try:
        while block := os.read(primary, 65536):
            drawn += block
    except OSError:  # what Linux reports when the other side has closed
        pass
    out, _ = process.communicate(timeout=30)
    os.close(primary)
    shown = drawn.decode()
    assert process.returncode == 0, shown
    assert out == '{"result": 1}\n'
    for text in ("Outer", "Inner", "2/2", "loss 1.5", "a [bold] sentence", "passed on"):
        assert text in shown
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")  # the cursor is visible again


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (-1, "0 s"),
        (0.44, "0.4 s"),
        (5, "5 s"),
        (9.97, "10 s"),
        (59.6, "1 min"),
        (200, "3 min 20 s"),
        (3599.7, "1 h"),
        (7500, "2 h 5 min"),
        (7199, "2 h"),
        (97_200, "1 d 3 h"),
        (float("inf"), "unknown time"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (7, "7"),
        (3.44, "3.4"),
        (999, "999"),
        (999.7, "1.0 k"),
        (1234, "1.2 k"),
        (9960, "10 k"),
        (999_999, "1.0 M"),
        (1_234_567, "1.2 M"),
        (-1_234_567, "-1.2 M"),
        (1.5e9, "1.5 B"),
        (2e15, "2000 T"),
    ],
)
def test_quantity(number: float, text: str) -> None:
    assert quantity(number) == text


def test_size() -> None:
    assert [size(n) for n in (0, 999, 1200, 37_000_000, 1.5e9)] == ["0 B", "999 B", "1.2 kB", "37 MB", "1.5 GB"]


def test_importing_it_does_not_import_rich() -> None:
    code = "import sys, athanor.base.progress; print('rich' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
