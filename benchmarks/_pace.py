"""When a training step may begin, and what to report: the same for every program whose training is measured.

A program asks before each step. Windows measure speed: the benchmark says on standard input how many seconds the next
one lasts, the program trains so long, answers with its tokens and seconds, and sleeps until the next line, so that
several programs can take turns on one machine. A budget measures quality: training ends when its time is over, which
compiling is part of, and the learning rate falls along a cosine of the time that has passed.

Only the standard library is imported: every program runs this in an environment of its own.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from dataclasses import dataclass
from typing import Any, TextIO

SETTLING = 2  # steps before the first window: compiling, and memory that is taken for the first time
WARMUP = 20  # steps of linear rise of the learning rate


def read_job() -> tuple[dict[str, Any], TextIO]:
    """What to train, and where to answer; what libraries print themselves goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return json.loads(sys.stdin.readline()), answers


def tell(answers: TextIO, **said: Any) -> None:
    answers.write(json.dumps(said) + "\n")
    answers.flush()


class Windows:
    """Steps within the windows that are asked for; the process ends with standard input."""

    def __init__(self, answers: TextIO) -> None:
        self.answers, self.created = answers, time.perf_counter()
        self.begun, self.tokens, self.started, self.seconds = 0, 0, 0.0, 0.0

    def may_begin(self, tokens: int) -> bool:
        """tokens: of the step before this one."""
        self.begun += 1
        if self.begun <= SETTLING:
            return True
        now = time.perf_counter()
        if self.seconds:
            self.tokens += tokens
            if now - self.started < self.seconds:
                return True
            tell(self.answers, tokens=self.tokens, seconds=now - self.started)
        else:
            tell(self.answers, settled=now - self.created)
        line = sys.stdin.readline()
        if not line.strip():
            os._exit(0)
        self.seconds, self.tokens, self.started = float(line), 0, time.perf_counter()
        return True


@dataclass
class Budget:
    """Steps until `seconds` are over, counted from here."""

    answers: TextIO
    seconds: float

    def __post_init__(self) -> None:
        self.started = self.last = time.perf_counter()
        self.begun, self.tokens = 0, 0

    def may_begin(self, tokens: int) -> bool:
        """tokens: of the step before this one."""
        now = time.perf_counter()
        step, self.last = now - self.last, now
        self.tokens += tokens
        if self.begun > 1 and now - self.started + step / 2 > self.seconds:
            tell(self.answers, steps=self.begun, tokens=self.tokens, seconds=now - self.started)
            return False
        self.begun += 1
        return True

    def factor(self) -> float:
        """Of the learning rate, for the step that has begun."""
        passed = min(1.0, (time.perf_counter() - self.started) / self.seconds)
        return min(1.0, self.begun / WARMUP) * (1 + math.cos(math.pi * passed)) / 2


def pace(job: dict[str, Any], answers: TextIO) -> Windows | Budget:
    return Budget(answers, job["seconds"]) if job["seconds"] else Windows(answers)
