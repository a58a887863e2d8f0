"""Trainers in processes of their own, measured against each other: Athanor, transformers' Trainer, LitGPT.

Each process trains the same network on the same tokens and sleeps outside of its windows (`_pace.py`), so that all take
turns and a machine that drifts favours none. A peer's best setting is searched for here, one choice after the other,
each against the best so far in alternating windows; what is found is part of the result.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

from athanor.base.machine import usable_cores
from athanor.corpus.build import build_corpus, iterate_documents
from athanor.corpus.shards import write_shards
from athanor.models.config import ModelConfig
from athanor.models.families import write_config
from athanor.tokenizer import train_tokenizer

HERE = Path(__file__).parent
OURS = ("THP_MEM_ALLOC_ENABLE", "GOMP_SPINCOUNT", "TOKENIZERS_PARALLELISM")  # set by `prepare_process`, for us alone
# What `prepare_process` does for Athanor, as far as a user of another program can do it from outside; huge pages are
# asked for by torch, or for the whole heap by glibc (2.35 and newer).
LARGE_BLOCKS = {
    "GOMP_SPINCOUNT": "10000",
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
    "MALLOC_TOP_PAD_": str(64 << 20),
}


@dataclass(frozen=True)
class Setting:
    """How a program is run. options: of TrainingArguments, or of litgpt.pretrain.setup. choices: what was changed to
    come here, in words.
    """

    micro_rows: int
    weights: str = "fp32"
    threads: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    choices: tuple[str, ...] = ()

    def __str__(self) -> str:
        return ", ".join(self.choices) or "default"

    def but(self, choice: str, changes: Mapping[str, Any]) -> Setting:
        merged: dict[str, Any] = {
            name: {**getattr(self, name), **value} if isinstance(value, Mapping) else value
            for name, value in changes.items()
        }
        return replace(self, **merged, choices=(*self.choices, choice))


@dataclass(frozen=True, eq=False)
class Program:
    """script: of benchmarks/; environment: under .peers, or None for our own. alternatives: choices of which the best
    is taken, group by group. adamw: the options that make the optimizer AdamW with a rate.
    """

    name: str
    script: str
    environment: str | None
    default: Setting
    alternatives: Sequence[Mapping[str, Mapping[str, Any]]] = ()
    adamw: Callable[[float], dict[str, Any]] = lambda rate: {}

    @property
    def python(self) -> str:
        if self.environment is None:
            return sys.executable
        folder = HERE.parent / ".peers" / self.environment
        if not (folder / ".installed").exists():
            raise SystemExit(f"{self.name} is not installed: make {folder.relative_to(HERE.parent)}/.installed")
        return str(folder / "bin" / "python")


_MICRO = {f"micro-batches of {rows}": {"micro_rows": rows} for rows in (4, 8, 16, 32)}
_THREADS = {"half of the cores": {"threads": usable_cores() // 2}} if usable_cores() >= 4 else {}
_ADAMW = {"betas": (0.9, 0.95), "weight_decay": 0.1}
_MEMORY = {
    "large blocks of memory": {"environment": LARGE_BLOCKS | {"THP_MEM_ALLOC_ENABLE": "1"}},
    "a heap of huge pages": {"environment": LARGE_BLOCKS | {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}},
}

ATHANOR = Program("Athanor", "_train_athanor.py", None, Setting(0))
TRANSFORMERS = Program(
    "transformers' Trainer",
    "_train_transformers.py",
    "transformers-trainer",
    Setting(8),
    (
        _MEMORY,
        {"bf16 autocast": {"options": {"bf16": True, "use_cpu": True}}, "bf16 weights": {"weights": "bf16"}},
        _MICRO,
        _THREADS,
        {"compiled": {"options": {"torch_compile": True}}},
    ),
    lambda rate: {"learning_rate": rate, "weight_decay": 0.1, "adam_beta2": 0.95},
)
LITGPT = Program(
    "LitGPT",
    "_train_litgpt.py",
    "litgpt",
    Setting(4),
    (
        {"fp32": {"options": {"precision": "32-true"}}, "bf16 weights": {"options": {"precision": "bf16-true"}}},
        {"not compiled": {"environment": {"TORCHDYNAMO_DISABLE": "1"}}},
        _MEMORY,
        _MICRO,
        _THREADS,
    ),
    lambda rate: {"optimizer": {"class_path": "torch.optim.AdamW", "init_args": _ADAMW | {"lr": rate}}},
)
PEERS = (TRANSFORMERS, LITGPT)


@dataclass(frozen=True)
class Task:
    """What is trained: batches of rows × length of `tokens`, the shards' array, documents closed by end of text."""

    model: ModelConfig
    tokens: Path
    rows: int
    length: int


class Failed(Exception):  # noqa: N818, its text is what the program wrote
    """A program ended before it should have."""


@dataclass
class Training:
    """A program that trains in a process of its own."""

    name: str
    process: subprocess.Popen[str]
    log: Path

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise Failed(self._failure())
        return dict(json.loads(line))

    def ask(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def finish(self) -> None:
        """Waits for the end, once it has answered for the last time."""
        if self.process.wait():
            raise Failed(self._failure())

    def _failure(self) -> str:
        return f"{self.name} has failed:\n{self.log.read_text(errors='replace')[-4000:]}"

    def speed(self, seconds: float) -> float:
        """Tokens a second of one window."""
        self.ask(str(seconds))
        found = self.answer()
        return float(found["tokens"] / found["seconds"])


@contextmanager
def training(program: Program, setting: Setting, task: Task, **job: Any) -> Iterator[Training]:
    """Starts it. job: seconds and out, where it is to train for a time and save its model; seed, options."""
    environment = {name: value for name, value in os.environ.items() if program is ATHANOR or name not in OURS}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        environment |= {
            "TORCHINDUCTOR_CACHE_DIR": f"{scratch}/inductor",  # nothing is compiled before its time
            "CUDA_VISIBLE_DEVICES": "",
            "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": os.pathsep.join(sys.path) if program is ATHANOR else "",
        }
        log = Path(scratch) / "log"
        with log.open("w") as errors:
            process = subprocess.Popen(
                [program.python, str(HERE / program.script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=errors, text=True, env=environment | dict(setting.environment), cwd=scratch,
            )  # fmt: skip
        try:
            running = Training(program.name, process, log)
            message = {
                "model": write_config(task.model), "tokens": str(task.tokens.resolve()), "rows": task.rows,
                "length": task.length, "micro_rows": min(setting.micro_rows, task.rows), "weights": setting.weights,
                "threads": setting.threads, "scratch": f"{scratch}/run",
                "seconds": None, "out": None, "seed": 0, **job,
                "options": {**setting.options, **job.get("options", {})},
            }  # fmt: skip
            running.ask(json.dumps(message))
            yield running
        finally:
            process.kill()
            process.wait()


def alternate(runs: Sequence[Training], seconds: float, repeats: int) -> list[float]:
    """The median speed of each, in windows that take turns."""
    speeds: list[list[float]] = [[] for _ in runs]
    for repeat in range(repeats):
        for place in range(len(runs)):
            number = (place + repeat) % len(runs)
            speeds[number].append(runs[number].speed(seconds))
    return [median(found) for found in speeds]


@dataclass
class _Started:
    """left: share of the horizon after what passes before the third step."""

    setting: Setting
    run: Training
    left: float
    stack: ExitStack


def _start(program: Program, setting: Setting, task: Task, horizon: float) -> _Started:
    with ExitStack() as stack:
        run = stack.enter_context(training(program, setting, task))
        left = max(0.0, 1 - run.answer()["settled"] / horizon)
        return _Started(setting, run, left, stack.pop_all())


def best_setting(program: Program, task: Task, seconds: float, horizon: float = math.inf) -> Setting:
    """The fastest for a training of `horizon` seconds, of which what passes before the third step is lost.

    seconds: of each window.
    """
    best = _start(program, program.default, task, horizon)
    try:
        for choices in program.alternatives:
            known = best.setting
            for choice, changes in choices.items():
                candidate = known.but(choice, changes)
                if replace(candidate, choices=()) != replace(known, choices=()):
                    best = _faster(program, best, candidate, task, seconds, horizon)
    finally:
        best.stack.close()
    return best.setting


def _faster(
    program: Program, best: _Started, candidate: Setting, task: Task, seconds: float, horizon: float
) -> _Started:
    """The better of the two; the other is ended."""
    try:
        other = _start(program, candidate, task, horizon)
    except Failed as failure:
        print(f"{program.name}: {candidate} does not run: {failure}", file=sys.stderr, flush=True)
        return best
    try:
        known, new = alternate([best.run, other.run], seconds, 2)
    except BaseException:
        other.stack.close()
        raise
    speeds = known * best.left, new * other.left
    print(
        f"{program.name}: {best.setting} {speeds[0]:,.0f} tokens/s, {candidate} {speeds[1]:,.0f}",
        file=sys.stderr, flush=True,
    )  # fmt: skip
    if speeds[1] > speeds[0]:
        best, other = other, best
    other.stack.close()
    return best


def build_text(folder: Path, limit_bytes: int, vocabulary: int) -> Path:
    """Shards of the first part of the default corpus; returns the array of tokens."""
    build_corpus(["default"], (), folder / "corpus", limit_bytes=limit_bytes)
    tokenizer = train_tokenizer((d.text for d in iterate_documents(folder / "corpus", "train")), vocabulary)
    write_shards(
        iterate_documents(folder / "corpus", "train"),
        lambda texts: [ids.tolist() for ids in tokenizer.encode_many(texts, usable_cores())],
        tokenizer.end_of_text_id,
        folder / "train",
        tokenizer.vocab_size,
    )
    return folder / "train" / "tokens.npy"
