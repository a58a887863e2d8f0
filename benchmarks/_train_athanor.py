"""Trains Athanor's model with its loop, for `_peers.py`: the optimizer, packing and precision of the default recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from _pace import pace, read_job

from athanor.base.machine import measure, prepare_process, usable_cores
from athanor.corpus.shards import Shards
from athanor.models.build import build
from athanor.models.config import ModelConfig
from athanor.models.families import read_config
from athanor.pipeline.planning import OPTIMIZERS
from athanor.science.planner import micro_rows
from athanor.training.batches import Batch, DocumentPieces, PackedBatches
from athanor.training.loop import LoopConfig, SourceEnded, Trainer
from athanor.training.objectives import next_token
from athanor.training.schedules import Schedule

_MEMORY = 2e9  # bytes, what a short run of the default recipe may take


class Paced:
    """Batches of the shards, each when its step may begin. Padding is not counted."""

    def __init__(self, text: Shards, job: Mapping[str, Any], steps: Any) -> None:
        end = text.index.end_of_text_id
        pieces = DocumentPieces(text.tokens, text.offsets, job["length"], end)
        self.batches = PackedBatches(pieces, job["rows"], job["length"], job["seed"], pad_id=end)
        self.steps, self.tokens = steps, 0

    def next(self) -> Batch:
        if not self.steps.may_begin(self.tokens):
            raise SourceEnded("its time is over")
        batch = self.batches.next()
        self.tokens = batch.n_targets
        return batch

    def get_position(self) -> dict[str, Any]:
        return self.batches.get_position()

    def set_position(self, position: Mapping[str, Any]) -> None:
        self.batches.set_position(position)


def main() -> None:
    job, answers = read_job()
    prepare_process()
    torch.set_num_threads(usable_cores())
    _, config = read_config(job["model"], "The job")
    assert isinstance(config, ModelConfig)
    micro = min(job["rows"], micro_rows(config, job["length"], _MEMORY))
    precision = measure().precision
    optimizer = replace(OPTIMIZERS["pretrain"], products="bf16" if precision == "bf16" else "fp32")
    loop = LoopConfig(None, micro, optimizer, Schedule(), precision=precision, checkpoint_every=10**9)
    source = Paced(Shards.open(Path(job["tokens"]).parent), job, pace(job, answers))
    trainer = Trainer(build(config, job["seed"]), next_token, source, loop, Path(job["scratch"]), remaining=lambda: 1e9)
    trainer.run("Training")


main()
