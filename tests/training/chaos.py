"""A training whose processes are killed: `python -m tests.training.chaos FOLDER KILLS SEED`.

Each process is a fork of this one, so that torch is imported once. Between two of the kills the newest checkpoint is
damaged, and one process finds for a while that no file may grow: what a full disk is like. Prints what came of it.
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import sys
import time
from pathlib import Path

import numpy as np
import torch

from athanor.models.build import build
from athanor.models.config import AttentionConfig, LayerConfig, MlpConfig, ModelConfig
from athanor.models.decoder import Decoder
from athanor.training.batches import DocumentPieces, PackedBatches
from athanor.training.loop import LoopConfig, Trainer
from athanor.training.objectives import next_token
from athanor.training.optimizers import OptimizerConfig
from athanor.training.schedules import Schedule

_STEP_SECONDS, _EVERY = 0.003, 4  # a pace at which the slowest machine is still killed in the middle
_LEAST_STEPS, _MOST_STEPS = 2, 12  # of a process, about, before it is killed


def train(folder: Path, steps: int) -> None:
    layer = LayerConfig(AttentionConfig(2, 1, 8, qk_norm="head"), MlpConfig(24))
    model = build(ModelConfig(64, 16, 32, (layer,)), 0)
    tokens = np.arange(3000) * 7 % 61
    batches = PackedBatches(DocumentPieces(tokens, np.arange(0, 3001, 100), 16, 0), 4, 16, 0, pad_id=0)
    config = LoopConfig(steps, 4, OptimizerConfig(), Schedule(2), checkpoint_every=_EVERY, evaluate_every=10)

    def evaluate(model: Decoder) -> dict[str, float]:
        return {"norm": float(model.norm.weight.detach().norm())}

    def beat() -> None:
        time.sleep(_STEP_SECONDS)

    Trainer(model, next_token, batches, config, folder, evaluate=evaluate, beat=beat).run("chaos")


def start(folder: Path, steps: int) -> int:
    """The process id of a training; it exits with 0 when it has come to its end."""
    process = os.fork()
    if process == 0:
        try:
            train(folder, steps)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    return process


def step_of(folder: Path) -> int:
    """How many steps are in the log."""
    path = folder / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def wait_for_step(process: int, folder: Path, step: int) -> None:
    while step_of(folder) < step and os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        time.sleep(0.001)


def fill_disk(process: int, folder: Path) -> None:
    """No file of the process may be written for the time in which it wants to write a checkpoint or two."""
    limits = resource.prlimit(process, resource.RLIMIT_FSIZE)
    resource.prlimit(process, resource.RLIMIT_FSIZE, (64, limits[1]))
    while json.loads((folder / "incidents.json").read_text() or "{}")["timing"]["missed_checkpoints"] == 0:
        time.sleep(2 * _EVERY * _STEP_SECONDS)
        resource.prlimit(process, resource.RLIMIT_FSIZE, (300, limits[1]))  # enough for the count alone
    resource.prlimit(process, resource.RLIMIT_FSIZE, limits)


def damage_newest(folder: Path) -> None:
    newest = max(folder.glob("checkpoints/step-*/state.safetensors"))
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(data)


def main(folder: Path, kills: int, seed: int) -> None:
    torch.set_num_threads(1)
    chance = random.Random(seed)
    steps = 40 + 15 * kills  # more than the killed ones can make
    exits = [os.waitpid(start(folder / "whole", steps), 0)[1]]
    cut = folder / "cut"
    for kill in range(kills):
        process = start(cut, steps)
        if kill == kills // 2:
            wait_for_step(process, cut, step_of(cut) + 1)
            fill_disk(process, cut)
        wait_for_step(process, cut, step_of(cut) + chance.randint(_LEAST_STEPS, _MOST_STEPS))
        time.sleep(chance.random() * 3 * _STEP_SECONDS)
        os.kill(process, signal.SIGKILL)
        exits.append(os.waitpid(process, 0)[1])
        if kill == kills // 3:
            damage_newest(cut)
    exits.append(os.waitpid(start(cut, steps), 0)[1])
    print(json.dumps({"exits": [os.waitstatus_to_exitcode(status) for status in exits], "steps": steps}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
