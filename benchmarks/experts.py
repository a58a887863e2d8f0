"""A mixture of experts against its dense twin: the same text and steps, as many parameters for each token, both ways
of balancing; bits a token of held-out text, and the load of the fullest expert over the mean.

ATHANOR_BENCH_STEPS changes the steps of each training (default 150), ATHANOR_BENCH_BYTES the text.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from _rows import row
from objectives import LENGTH, VOCABULARY, Bench

from athanor.base.files import read_jsonl
from athanor.base.machine import usable_cores
from athanor.evaluation.objectives import held_out_batches, objective_scores
from athanor.models.build import new
from athanor.models.config import ModelConfig, standard_config
from athanor.models.shapes import experts_config
from athanor.training.loop import LoopConfig, Trainer
from athanor.training.objectives import next_token
from athanor.training.optimizers import OptimizerConfig
from athanor.training.pretraining import OBJECTIVES, Learnt, learnt
from athanor.training.schedules import Schedule

ISSUE = "C"
SIZES = {"d_model": 128, "n_layers": 3, "d_ff": 384}
ROWS, SEEDS = 8, 2
ARMS: dict[str, ModelConfig] = {
    "dense": standard_config(VOCABULARY, LENGTH, **SIZES),
    "8 experts, 2 a token, by the loss": experts_config(VOCABULARY, LENGTH, **SIZES),
    "8 experts, 2 a token and 1 shared, by the bias": experts_config(VOCABULARY, LENGTH, **SIZES, balance="bias"),
}


def rows() -> Iterator[dict[str, Any]]:
    torch.set_num_threads(usable_cores())
    steps = int(os.environ.get("ATHANOR_BENCH_STEPS", "150"))
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        for name, config in ARMS.items():
            found = [_trained(bench, name, config, seed, steps, Path(folder)) for seed in range(SEEDS)]
            bits, loads, seconds = (mean(values) for values in zip(*found, strict=True))
            yield row(f"held out after {steps} steps, {name}", bits, "bits/token")
            yield row(f"load of the fullest expert, {name}", loads, "times the mean")
            yield row(f"a step, {name}", 1000 * seconds, "ms")


def _trained(
    bench: Bench, name: str, config: ModelConfig, seed: int, steps: int, folder: Path
) -> tuple[float, float, float]:
    known, vocabulary = OBJECTIVES["experts"], bench.vocabulary
    source, held_out = (
        known.batches(text.tokens, text.offsets, vocabulary, ROWS, LENGTH, seed)
        for text in (bench.train, bench.held_out)
    )
    model, stage, began = new(config, seed), folder / f"{name}-{seed}", time.perf_counter()
    what = Learnt(next_token) if name == "dense" else learnt("experts", model)
    loop = LoopConfig(steps, ROWS, OptimizerConfig(), Schedule(10))
    Trainer(model, what.loss, source, loop, stage, after_step=what.after_step).run(name)
    seconds = (time.perf_counter() - began) / steps
    batches = held_out_batches(held_out, 16)
    (score,) = objective_scores("experts", model, source, batches, vocabulary.special, VOCABULARY)
    loads = [line.get("expert_load", 1.0) for line in read_jsonl(stage / "metrics.jsonl")]
    return score.value, mean(loads[-20:]), seconds
