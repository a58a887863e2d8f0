"""What the planner's law stands on: models of several sizes trained on several numbers of tokens with the main job's
recipe, their held-out bits per byte, and the law fitted to them (exponents fixed, the rest by least squares).

Needs the shards of a run: runs/bench-10m-0, or the one that ATHANOR_BENCH_RUN names.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _rows import row

from athanor.base.machine import usable_cores
from athanor.base.randomness import subseed
from athanor.corpus.shards import Shards
from athanor.evaluation.bits_per_byte import bits_per_byte, document_nats, sample_held_out
from athanor.models.build import build
from athanor.models.config import standard_config
from athanor.science.planner import DEFAULT_LAW, batch_tokens, block_parameters
from athanor.training.batches import DocumentPieces, PackedBatches
from athanor.training.loop import LoopConfig, Trainer
from athanor.training.objectives import next_token
from athanor.training.optimizers import OptimizerConfig
from athanor.training.schedules import Schedule

ISSUE = "A"
LENGTH = 256
POINTS = ((128, 4, 500_000), (192, 4, 500_000), (256, 4, 500_000), (128, 4, 1_200_000), (192, 4, 1_000_000))


def rows() -> Iterator[dict[str, Any]]:
    torch.set_num_threads(usable_cores())
    run = Path("runs") / os.environ.get("ATHANOR_BENCH_RUN", "bench-10m-0")
    if not (run / "shards").is_dir():
        raise SystemExit(f"{run} has no shards: run `athanor bench default_job` first, or set ATHANOR_BENCH_RUN.")
    found = []
    for d_model, n_layers, tokens in POINTS:
        config = standard_config(8192, LENGTH, d_model=d_model, n_layers=n_layers)
        bits = trained(config, tokens, run)
        size = block_parameters(config)
        found.append((size, tokens, bits))
        name = f"d_model {d_model}, {n_layers} layers, {tokens / 1e6:.1f} M tokens, against the law"
        yield row(name, bits, "bits/byte", peer=DEFAULT_LAW.bits_per_byte(size, tokens)) | {"met": None}
    sizes, lengths, values = (np.array(column, dtype=np.float64) for column in zip(*found, strict=True))
    features = np.stack([np.ones_like(sizes), sizes**-DEFAULT_LAW.alpha, lengths**-DEFAULT_LAW.beta], axis=1)
    fitted, *_ = np.linalg.lstsq(features, values)
    for name, value in zip(("floor", "a", "b"), fitted, strict=True):
        yield row(f"law, fitted: {name}", float(value), "", peer=getattr(DEFAULT_LAW, name)) | {"met": None}
    yield row("law, largest error of the fit", float(np.abs(features @ fitted - values).max()), "bits/byte")


def trained(config: Any, tokens: int, run: Path) -> float:
    """Held-out bits per byte after `tokens` of the main job's pre-training."""
    text, held_out = Shards.open(run / "shards" / "train"), Shards.open(run / "shards" / "heldout")
    eot = text.index.end_of_text_id
    n_rows = batch_tokens(tokens) // LENGTH
    pieces = DocumentPieces(text.tokens, text.offsets, LENGTH, eot)
    source = PackedBatches(pieces, n_rows, LENGTH, subseed(0, "pretrain"), pad_id=eot)
    steps = tokens // (n_rows * LENGTH)
    model = build(config, 0)
    loop = LoopConfig(steps, n_rows, OptimizerConfig(), Schedule(10), 0.5)
    with tempfile.TemporaryDirectory() as folder:
        Trainer(model, next_token, source, loop, Path(folder)).run(f"d_model {config.d_model}")
    scored = sample_held_out(held_out, 50_000, 0)
    return bits_per_byte(document_nats(model, scored, LENGTH, "fp32"), scored)
