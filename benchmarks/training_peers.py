"""Tokens a second of whole training steps: Athanor's default against transformers' Trainer and LitGPT's pre-training.

All train one network (Qwen3's shape, 8,192 tokens of vocabulary, tied) on the same text, cut by the same tokenizer, in
batches of 8,192 tokens of rows of 256, each program in its own process with the versions of `peers/*.txt` and one
PyTorch (`make peers`). Rates are medians of windows that take turns; what passes before the third step, compiling
above all, is not counted. Athanor packs documents that cannot see one another and counts no padding; the peers run
documents together, as their own examples do.

A peer's default is what it does when only model, text and batch are given: fp32 in micro-batches of 8 rows for the
Trainer; bf16 autocast, compiled, micro-batches of 4 for LitGPT. Its best is searched for here, with the smaller
network, among precisions (autocast and weights in bf16), micro-batches, threads, compiling, and the allocator's
variables that Athanor sets for itself; what was chosen stands in the metric's name. LitGPT's Config describes the very
same network, tied weights included.

ATHANOR_BENCH_SECONDS changes the length of a window (default 20). The whole takes about an hour on two cores.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from _peers import ATHANOR, PEERS, Program, Setting, Task, alternate, best_setting, build_text, training
from _rows import row

from athanor.models.build import count_parameters
from athanor.models.config import standard_config

ISSUE = "C"
VOCABULARY, LENGTH, ROWS = 8192, 256, 32
SIZES = ((256, 6), (448, 8))
TEXT_BYTES = 8_000_000
REPEATS = 3
TARGETS = {"transformers' Trainer": (1.15, 3.0), "LitGPT": (1.15, 2.5)}  # against its best, and its default


def rows() -> Iterator[dict[str, Any]]:
    seconds = float(os.environ.get("ATHANOR_BENCH_SECONDS", "20"))
    with tempfile.TemporaryDirectory() as folder:
        tokens = build_text(Path(folder), TEXT_BYTES, VOCABULARY)
        tasks = [
            Task(standard_config(VOCABULARY, LENGTH, d_model=d_model, n_layers=n_layers), tokens, ROWS, LENGTH)
            for d_model, n_layers in SIZES
        ]
        for peer in PEERS:
            best = best_setting(peer, tasks[0], seconds / 2)
            for task in tasks:
                yield from compared(peer, best, task, seconds)


def compared(peer: Program, best: Setting, task: Task, seconds: float) -> Iterator[dict[str, Any]]:
    """Rows against its best setting and its default."""
    with ExitStack() as stack:
        runs = [
            stack.enter_context(training(program, setting, task))
            for program, setting in ((ATHANOR, ATHANOR.default), (peer, best), (peer, peer.default))
        ]
        for run in runs:
            run.answer()
        ours, *theirs = alternate(runs, seconds, REPEATS)
    size = f"{count_parameters(task.model) / 1e6:.1f} M parameters"
    names = (f"at its best ({best})", "at its default")
    for name, speed, target in zip(names, theirs, TARGETS[peer.name], strict=True):
        said = f"training against {peer.name} {name}, {size}"
        yield row(said, ours, "tokens/s", target=target * speed, peer=speed)
