"""The rollouts of reinforcement learning, as `make run` asks for them, against the sampler that Athanor began with.

A batch is 24 prompts of 20 tokens with 8 answers of 48 tokens each, at temperature 1; the model has the size that ten
minutes train, freshly initialised, and no token ends an answer, so that both write equally much. The engine gets the
weights anew before each batch, which is timed too, as between two updates. Each computes as a run would have it: the
engine by its best rung, the old sampler in the faster of fp32 and bf16. The old sampler comes from this clone's history
and runs in a process of its own; both go by turns, and the row's ratio is the median over them. A clone without that
history has no peer to show.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from _rows import row

from athanor.alignment.rollouts import batch_engine
from athanor.base.machine import measure, usable_cores
from athanor.engine.engine import complete
from athanor.engine.sampling import AS_TRAINED
from athanor.models.build import build, count_parameters
from athanor.models.config import standard_config
from athanor.pipeline.recipe import RlRecipe

ISSUE = "D"
TURNS, AT_LEAST = 5, 3.0
SIZES = {"d_model": 128, "n_layers": 4}  # what the default recipe plans for ten minutes on two cores
VOCABULARY, CONTEXT, PROMPT = 8192, 1024, 20
SAMPLER = "athanor/engine/decoding.py"
RECIPE = RlRecipe()
PROMPTS = [[5 + (7919 * (place + 31 * number)) % 8000 for place in range(PROMPT)] for number in range(RECIPE.prompts)]


def rows() -> Iterator[dict[str, Any]]:
    torch.set_num_threads(usable_cores())
    precision = measure(1.0).precision
    model = build(standard_config(VOCABULARY, CONTEXT, **SIZES), 0)
    engine = batch_engine(model, precision)
    count, group = RECIPE.max_tokens, RECIPE.group
    sampling = replace(AS_TRAINED, max_tokens=count, n=group, seed=1)

    def ours() -> float:
        start = time.perf_counter()
        engine.update_weights(model)
        answers = complete(engine, PROMPTS, sampling, frozenset())
        return sum(len(answer.tokens) for answer in answers) / (time.perf_counter() - start)

    metric = (
        f"rollouts, {len(PROMPTS)} × {group} answers of {count} tokens, "
        f"{count_parameters(model.config) / 1e6:.1f} M parameters"
    )
    with tempfile.TemporaryDirectory() as folder:
        peer = _first_sampler(Path(folder), precision)
        ours()
        if peer is None:
            speed = median(ours() for _ in range(TURNS))
            yield row(f"{metric}; this clone's history lacks the first sampler", speed, "tokens/s")
            return
        _ask(peer)
        turns = [(ours(), _ask(peer)) for _ in range(TURNS)]
        peer.kill()
    ratio = median(mine / their for mine, their in turns)
    speed, theirs = (median(speeds) for speeds in zip(*turns, strict=True))
    found = row(f"{metric}, against the first sampler in {precision}", speed, "tokens/s", target=AT_LEAST, peer=theirs)
    yield {**found, "ratio": ratio, "met": ratio >= AT_LEAST}


def _first_sampler(folder: Path, precision: str) -> subprocess.Popen[str] | None:
    """Its process, with the last version that had it in `folder`; None where it cannot be had."""
    top = Path(__file__).parent.parent
    try:
        removed = _git(top, "log", "-1", "--diff-filter=D", "--format=%H", "--", SAMPLER).decode().strip()
        archive = _git(top, "archive", f"{removed}^", "athanor")
    except (OSError, subprocess.CalledProcessError):
        return None
    subprocess.run(["tar", "-x", "-C", folder], input=archive, check=True)
    peer = subprocess.Popen(
        [sys.executable, Path(__file__).with_name("_first_sampler.py")],
        env={**os.environ, "PYTHONPATH": str(folder)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    wanted = {
        "threads": usable_cores(),
        "precision": precision,
        "vocabulary_and_context": (VOCABULARY, CONTEXT),
        "sizes": SIZES,
        "prompts": PROMPTS,
        "group": RECIPE.group,
        "tokens": RECIPE.max_tokens,
    }
    _tell(peer, json.dumps(wanted))
    return peer


def _git(top: Path, *command: str) -> bytes:
    return subprocess.run(
        ["git", *command], cwd=top, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ).stdout


def _tell(peer: subprocess.Popen[str], line: str) -> None:
    assert peer.stdin is not None
    peer.stdin.write(f"{line}\n")
    peer.stdin.flush()


def _ask(peer: subprocess.Popen[str]) -> float:
    _tell(peer, "go")
    assert peer.stdout is not None
    return float(peer.stdout.readline())
