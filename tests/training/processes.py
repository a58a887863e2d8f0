"""A script that trains a tiny decoder in several processes, forked from one that has torch imported already.

Its argument is a JSON list of groups, done one after the other: {"size": …, "jobs": […]}; every process of a group does
the jobs, whose fields are those of `train`. It prints the exit status of each process, and errors on standard error.
"""

from __future__ import annotations

import copy
import json
import os
import signal
import socket
import sys
import time
import traceback
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.distributed.checkpoint  # here, so that the processes need not import it each for itself
import torch.distributed.fsdp
from safetensors.torch import save_file

from athanor.base.errors import AthanorError, Stopped
from athanor.base.randomness import generator
from athanor.models.build import build
from athanor.models.config import AttentionConfig, EmbeddingConfig, LayerConfig, MlpConfig, ModelConfig
from athanor.models.folder import save_model
from athanor.models.ngrams import NGrams
from athanor.training.batches import Batch, DocumentPieces, PackedBatches
from athanor.training.checkpoints import Retention
from athanor.training.loop import LoopConfig, Trainer
from athanor.training.objectives import Loss, next_token
from athanor.training.optimizers import OptimizerConfig
from athanor.training.parallel import Group, connected
from athanor.training.recompute import Recompute
from athanor.training.schedules import Schedule
from athanor.training.soft_targets import SoftBatches
from tests.training.test_every_objective import EVERY

CONFIG = ModelConfig(65, 16, 32, (LayerConfig(AttentionConfig(2, 1, 8, qk_norm="head"), MlpConfig(25)),) * 2)


def batches(rows: int) -> PackedBatches:
    documents = [generator(1, "document", i).integers(1, 65, 5 + 7 * i % 50) // (1 + i % 3) for i in range(12)]
    tokens = np.concatenate([np.append(document, 0) for document in documents])
    offsets = np.cumsum([0, *(len(document) + 1 for document in documents)])
    return PackedBatches(DocumentPieces(tokens, offsets, 16, 0), rows, 16, seed=3, pad_id=0)


def train(
    group: Group,
    folder: str,
    sharded: bool = False,
    steps: int = 10,
    rows: int = 8,
    micro_rows: int = 2,
    precision: str = "fp32",
    stop_after: int | None = None,
    dies: int | None = None,
    fails: int | None = None,
    signalled: int | None = None,
    average: str = "none",
    best: str = "",
    recompute: Recompute = "none",
    unused: bool = False,
    memory: bool = False,
    learns: str = "",
) -> None:
    """stop_after: the step after which all processes leave. dies, fails, signalled: the process that does or is (with
    SIGTERM), at its 5th loss. unused: whether a parameter has nothing to do. memory: whether n-grams are targets, and
    looked up by the model. learns: one of `test_every_objective.EVERY` instead of the next token.
    """
    calls, after_step, own = 0, None, next_token

    def objective(model: torch.nn.Module, batch: Batch) -> Loss:
        nonlocal calls
        calls += 1
        if calls == 5 and group.rank == dies:
            os.kill(os.getpid(), 9)
        if calls == 5 and group.rank == fails:
            raise AthanorError("This process has had enough.")
        if calls == 5 and group.rank == signalled:
            os.kill(os.getpid(), signal.SIGTERM)
        return own(model, batch)

    def evaluate(model: torch.nn.Module) -> dict[str, float]:
        with torch.no_grad():
            loss = own(model, seen)
        return {"heldout": float(loss.sum) / loss.count}

    config = LoopConfig(
        steps,
        micro_rows,
        OptimizerConfig(cautious=False),  # else rounding decides whether an entry near zero decays
        Schedule(2),
        precision=precision,
        checkpoint_every=2,
        retention=Retention(1, best),
        evaluate_every=2 if best else 3,
        average=average,
        recompute=recompute,
    )
    source: PackedBatches | SoftBatches = batches(rows)
    model = build(replace(CONFIG, embedding=EmbeddingConfig(ngrams=3), family="qwen3_ngrams") if memory else CONFIG, 0)
    if memory:
        counted = NGrams.count(source.sequences.tokens, CONFIG.vocab_size, 3)
        source = SoftBatches(source, counted, remember=True)
        model.embedding.memory.table = counted.pruned()
    seen = batches(4).next()
    if learns:
        made = {make.__name__: make for make in EVERY}[learns](group)
        model, source, own, after_step = made
        seen = copy.deepcopy(source).next()
    if unused:
        model.blocks[0].unused = torch.nn.Linear(3, 3)
    trainer = Trainer(
        model,
        objective,
        source,
        config,
        Path(folder),
        evaluate=evaluate,
        after_step=after_step,
        group=group,
        sharded=sharded,
    )
    if stop_after is not None:
        step = trainer._step

        def stopping(*arguments: object) -> None:
            if trainer.outcome.steps == stop_after:
                raise KeyboardInterrupt
            step(*arguments)

        trainer._step = stopping
    try:
        trainer.run("test")
    except Stopped:
        raise
    except KeyboardInterrupt:
        return
    model = trainer.whole_model()
    if group.is_first:
        save_file({name: p.detach() for name, p in model.named_parameters()}, Path(folder) / "weights.safetensors")
        if not learns:
            save_model(model, Path(folder) / "model")


def child(rank: int, size: int, port: int, jobs: list[dict]) -> int:
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank)}
    try:
        with connected() as group:
            for job in jobs:
                train(group, **job)
    except Stopped as stop:
        return 128 + stop.signal
    except AthanorError as error:
        print(f"process {rank}: {error}", file=sys.stderr, flush=True)
        return 2
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def main() -> None:
    for spec in json.loads(sys.argv[1]):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        began, children = time.monotonic(), []
        for rank in range(spec["size"]):
            if (pid := os.fork()) == 0:
                os._exit(child(rank, spec["size"], port, spec["jobs"]))
            children.append(pid)
        statuses = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
        print(json.dumps({"statuses": statuses, "seconds": time.monotonic() - began}), flush=True)


if __name__ == "__main__":
    main()
