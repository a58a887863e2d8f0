"""Whether learning rates carry over from one width to another, and to larger batches: the loss after a short training
at each width, at the rates of `OptimizerConfig`, their half, and their double; and after as many tokens in batches of
eight rows and of 32. The best factor should be the same at every width, and the square root of four times as large, 2,
with four times the batch.

The text is made here, from a table of which token follows which two, so nothing needs to be there and every width sees
the same. By hand, on a quiet machine; results go to docs/lab.md.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _rows import row

from athanor.base.files import read_jsonl
from athanor.base.machine import usable_cores
from athanor.base.randomness import generator
from athanor.models.build import build
from athanor.models.config import standard_config
from athanor.training.batches import DocumentPieces, PackedBatches
from athanor.training.loop import LoopConfig, Trainer
from athanor.training.objectives import next_token
from athanor.training.optimizers import RATES, Kind, OptimizerConfig
from athanor.training.schedules import Schedule

ISSUE = "C"
WIDTHS, FACTORS = (64, 128, 256), (0.5, 1.0, 2.0)
VOCABULARY, LENGTH, BATCH, STEPS, LAST = 512, 64, 8, 80, 10
BATCHES, BATCH_FACTORS, BATCH_WIDTH, ROWS_IN_ALL = (8, 32), (0.5, 1.0, 2.0, 4.0), 128, 2560
KINDS: tuple[Kind, ...] = ("muon", "adamw")


def rows() -> Iterator[dict[str, Any]]:
    torch.set_num_threads(usable_cores())
    text = made_text(ROWS_IN_ALL * LENGTH)
    for kind in KINDS:
        for width in WIDTHS:
            for factor in FACTORS:
                loss = trained(text, width, scaled(OptimizerConfig(kind=kind), factor), BATCH, STEPS)
                yield row(f"loss with {kind}, {width} wide, rates × {factor}", loss, "nats")
        for batch in BATCHES:
            for factor in BATCH_FACTORS:
                optimizer = scaled(OptimizerConfig(kind=kind), factor)
                loss = trained(text, BATCH_WIDTH, optimizer, batch, ROWS_IN_ALL // batch)
                yield row(f"loss with {kind}, batches of {batch} rows, rates × {factor}", loss, "nats")


def scaled(config: OptimizerConfig, factor: float) -> OptimizerConfig:
    return replace(config, **{name: getattr(config, name) * factor for name in RATES})


def made_text(tokens: int) -> np.ndarray:
    """Ids in which each follows from the two before it with one of four continuations, some likelier than others."""
    random = generator(0, "rate transfer")
    follows = random.integers(1, VOCABULARY, (64, 64, 4))
    choices = random.choice(4, size=tokens, p=(0.5, 0.25, 0.15, 0.1))
    ids = np.ones(len(choices), dtype=np.int32)
    for place in range(2, len(ids)):
        ids[place] = follows[ids[place - 2] % 64, ids[place - 1] % 64, choices[place]]
    return ids


def trained(ids: np.ndarray, width: int, optimizer: OptimizerConfig, batch: int, steps: int) -> float:
    """The mean loss of the last steps."""
    offsets = np.arange(0, len(ids) + 1, 8 * LENGTH)
    source = PackedBatches(DocumentPieces(ids, offsets, LENGTH, 0), batch, LENGTH, 0, pad_id=0)
    model = build(standard_config(VOCABULARY, LENGTH, d_model=width, n_layers=3), 0)
    config = LoopConfig(steps, batch, optimizer, Schedule(5), 0.3)
    with tempfile.TemporaryDirectory() as folder:
        Trainer(model, next_token, source, config, Path(folder)).run(f"{width} wide")
        losses = [line["loss"] for line in read_jsonl(Path(folder) / "metrics.jsonl")]
    return float(np.mean(losses[-LAST:]))
