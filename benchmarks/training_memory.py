"""The peak memory of training 135 M parameters (the shape of SmolLM2-135M) at 512 tokens, four rows at a time.

Each row is the peak of a fresh process, Python and torch counted, that runs the training loop for two steps: a tiny
one, after which the optimizer's state is there, and one of two micro-batches, of which the second meets the gradients
of the first. More steps need no more memory. The last checkpoint is written too.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from _rows import row

from athanor.base.machine import peak_memory, prepare_process, usable_cores
from athanor.models.build import build
from athanor.models.config import AttentionConfig, LayerConfig, MlpConfig, ModelConfig
from athanor.training.batches import Batch
from athanor.training.loop import LoopConfig, Trainer
from athanor.training.objectives import next_token
from athanor.training.optimizers import OptimizerConfig
from athanor.training.schedules import Schedule

ISSUE = "C"
LENGTH, ROWS, MICRO_BATCHES = 512, 4, 2
VOCABULARY = 49_152
MOST = 4e9  # bytes, for bf16
CASES = (
    ("bf16", "none", "muon"), ("bf16", "blocks", "muon"), ("bf16", "none", "adamw"), ("bf16", "blocks", "adamw"),
    ("fp32", "none", "muon"), ("fp32", "blocks", "muon"), ("fp32", "none", "adamw"), ("fp32", "blocks", "adamw"),
)  # fmt: skip


def rows() -> Iterator[dict[str, Any]]:
    for precision, recompute, optimizer in CASES:
        command = [sys.executable, __file__, precision, recompute, optimizer]
        peak = float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
        name = f"peak memory, {precision}, {optimizer}" + (", blocks recomputed" if recompute == "blocks" else "")
        yield row(name, peak / 1e9, "GB", target=MOST / 1e9 if precision == "bf16" else None, most=True)


class Text:
    """Two batches of random tokens: one row, then the real size."""

    def __init__(self) -> None:
        self.sizes = [(1, 16), (ROWS * MICRO_BATCHES, LENGTH)]

    def next(self) -> Batch:
        shape = self.sizes.pop(0)
        tokens = torch.randint(VOCABULARY, shape, generator=torch.Generator().manual_seed(0))
        positions = torch.arange(shape[1]).expand(shape)
        return Batch(tokens, tokens.roll(-1, 1), positions // (shape[1] // 2), positions % (shape[1] // 2))

    def get_position(self) -> dict[str, Any]:
        return {}

    def set_position(self, position: Mapping[str, Any]) -> None:
        raise NotImplementedError


def train(precision: str, recompute: str, optimizer: str) -> None:
    torch.set_num_threads(usable_cores())
    layer = LayerConfig(AttentionConfig(9, 3, 64), MlpConfig(1536))
    model = build(ModelConfig(VOCABULARY, 576, 2048, (layer,) * 30), 0)
    steps = OptimizerConfig(kind=optimizer, products="bf16" if precision == "bf16" else "fp32")
    config = LoopConfig(2, ROWS, steps, Schedule(1), precision=precision, recompute=recompute)
    with TemporaryDirectory() as folder:
        Trainer(model, next_token, Text(), config, Path(folder)).run("Training")


if __name__ == "__main__":
    prepare_process()
    train(*sys.argv[1:])
    print(peak_memory())
