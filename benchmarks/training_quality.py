"""Held-out bits per byte after ten minutes of training from the same text: Athanor's default against transformers'
Trainer, LitGPT, and our own AdamW with a cosine.

Everyone reads the documents that the default recipe reads for the time given, and is scored on the same held-out ones
by one function, from the saved folder. The time is that of training alone: building the model, compiling, and whatever
a program does between steps count; preparing text and training the tokenizer count for nobody. Athanor trains what
`athanor run default` plans for that time: size, batch, schedule, checkpoints and measurements included.

The peers and the baseline are given more than they have of themselves: the planner's size and batch, our tokenizer of
8,192 (their usual vocabularies, GPT-2's 50,257 and Llama's 32,000, would take most of the compute of so small a model),
the fastest setting that is found as in `training_peers`, for the time given, and a cosine of the time that has passed,
so that the rate has just arrived at zero at the end. AdamW has betas of 0.9 and 0.95 and a decay of 0.1. The baseline
is `kind = "adamw"` with our initialisation and our rates for everything but the matrices.

RATES

ATHANOR_BENCH_SECONDS changes the time (default 600); ATHANOR_BENCH_SWEEP=1 measures every rate once instead. Finished
trainings lie in runs/bench-quality-SECONDS and are read, not repeated.
"""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean, median
from typing import Any

from _peers import LITGPT, PEERS, TRANSFORMERS, Program, Setting, Task, best_setting, training
from _rows import row

from athanor.base.files import read_json, write_json
from athanor.corpus.shards import Shards
from athanor.evaluation.bits_per_byte import HeldOut, bits_per_byte, choose_documents, document_nats, held_out
from athanor.models.build import build
from athanor.models.decoder import Decoder
from athanor.models.folder import load_decoder
from athanor.pipeline.arms import BASELINE, Arm, Extent
from athanor.pipeline.experiment import Experiment
from athanor.pipeline.plans import PretrainPlan
from athanor.pipeline.recipe import read_settings
from athanor.pipeline.together import loop_config, pretraining_batches, preview_bits_per_byte
from athanor.training.loop import Trainer
from athanor.training.objectives import next_token
from athanor.training.optimizers import OptimizerConfig
from athanor.training.schedules import Schedule, Turn

ISSUE = "C"
SEEDS = 3
MOST, BETTER_THAN_PEERS, BETTER_THAN_BASELINE = 1.72, 0.9, 0.95
RATES = {TRANSFORMERS.name: 4e-3, LITGPT.name: 4e-3}
BASELINE_RATE = 4e-3
SWEPT = (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2)
SCORED_TOKENS = 50_000  # as `athanor ablate` takes them
WINDOW = 10.0  # seconds, in the search for a peer's best setting


def rows() -> Iterator[dict[str, Any]]:
    bench = Bench(float(os.environ.get("ATHANOR_BENCH_SECONDS", "600")))
    if "ATHANOR_BENCH_SWEEP" in os.environ:
        yield from sweep(bench)
        return
    ours, theirs = bench.default(), [bench.baseline(BASELINE_RATE, seed) for seed in range(SEEDS)]
    after = f"after {bench.seconds:g} s"
    yield row(f"default recipe {after}, median of {SEEDS} seeds", median(ours), "bits/byte", target=MOST, most=True)
    for peer in PEERS:
        name = f"default recipe {after} against {peer.name} at its best ({bench.setting(peer)})"
        found = bench.peer(peer, RATES[peer.name])
        yield lower(name, median(ours), found, BETTER_THAN_PEERS)
    for seed, (own, other) in enumerate(zip(ours, theirs, strict=True)):
        yield lower(f"default recipe {after} against AdamW with a cosine, seed {seed}", own, other, 1.0)
    name = f"default recipe {after} against AdamW with a cosine, mean of {SEEDS} seeds"
    yield lower(name, fmean(ours), fmean(theirs), BETTER_THAN_BASELINE)


def lower(name: str, ours: float, theirs: float, share: float) -> dict[str, Any]:
    """To be at most this share of theirs."""
    return row(name, ours, "bits/byte", target=share * theirs, peer=theirs, most=True)


def sweep(bench: Bench) -> Iterator[dict[str, Any]]:
    """Every rate once: where the docstring's table and the rates below it come from."""
    bench.default(1)
    for rate in SWEPT:
        for peer in PEERS:
            yield row(f"{peer.name}, rate {rate:g}", bench.peer(peer, rate), "bits/byte")
        yield row(f"AdamW with a cosine, rate {rate:g}", bench.baseline(rate, 0), "bits/byte")


@dataclass(frozen=True)
class TimedCosine(Schedule):
    """The factor falls with the share of the time that has passed."""

    passed: Callable[[], float] = field(default=lambda: 0.0)

    def factor(self, step: int, turns: Sequence[Turn]) -> float:
        return min(1.0, step / self.warmup) * (1 + math.cos(math.pi * min(1.0, self.passed()))) / 2


@dataclass
class Bench:
    """The text, the plan, and what has been trained from them."""

    seconds: float

    @property
    def folder(self) -> Path:
        return Path("runs") / f"bench-quality-{self.seconds:g}"

    def default(self, seeds: int = SEEDS) -> list[float]:
        """Of the default recipe; makes text, tokenizer and plan too."""
        experiment = Experiment(self.folder, "default", read_settings("default"), Extent("time", self.seconds))
        found = experiment.run(Arm(BASELINE, BASELINE, {}), [], seeds, "athanor bench training_quality")["arms"][0]
        return list(found["bits_per_byte"]["by_seed"].values())

    @cached_property
    def plan(self) -> PretrainPlan:
        return PretrainPlan.model_validate(read_json(self.folder / BASELINE / "plan.json")["plan"])

    @cached_property
    def shards(self) -> Path:
        return next(self.folder.glob("data/*/shards"))

    @cached_property
    def documents(self) -> HeldOut:
        """The ones that the experiment scores."""
        text = Shards.open(self.shards / "heldout")
        return held_out(text, choose_documents(text, SCORED_TOKENS, 0))

    @property
    def task(self) -> Task:
        return Task(self.plan.model, self.shards / "train" / "tokens.npy", self.plan.rows, self.plan.length)

    def score(self, model: Decoder) -> float:
        return bits_per_byte(document_nats(model, self.documents, self.plan.length), self.documents)

    def remembered(self, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What `make` returned when it was first asked for."""
        path = self.folder / "others" / f"{name}.json"
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            write_json(path, make())
        return dict(read_json(path))

    def setting(self, peer: Program) -> Setting:
        """The peer's fastest, compiling counted."""
        found = self.remembered(
            f"{peer.environment}-setting", lambda: asdict(best_setting(peer, self.task, WINDOW, self.seconds))
        )
        return Setting(**found | {"choices": tuple(found["choices"])})

    def peer(self, peer: Program, rate: float) -> float:
        def make() -> dict[str, Any]:
            with tempfile.TemporaryDirectory() as place:
                out, job = Path(place) / "model", {"options": peer.adamw(rate), "seconds": self.seconds}
                with training(peer, self.setting(peer), self.task, out=str(out), **job) as run:
                    said = run.answer()
                    run.finish()
                return said | {"bits_per_byte": self.score(load_decoder(out))}

        return float(self.remembered(f"{peer.environment}-{rate:g}", make)["bits_per_byte"])

    def baseline(self, rate: float, seed: int) -> float:
        """Our loop, with AdamW and a cosine."""

        def make() -> dict[str, Any]:
            start, plan = time.perf_counter(), self.plan

            def passed() -> float:
                return (time.perf_counter() - start) / self.seconds

            loop = replace(
                loop_config(plan),
                optimizer=OptimizerConfig(kind="adamw", adam_lr=rate),
                schedule=TimedCosine(plan.warmup, passed=passed),
                decay_share=0.0,
            )
            with tempfile.TemporaryDirectory() as place:
                trainer = Trainer(
                    build(plan.model, seed),
                    next_token,
                    pretraining_batches(plan, Shards.open(self.shards / "train"), seed),
                    loop,
                    Path(place),
                    remaining=lambda: self.seconds * (1 - passed()),
                    evaluate=preview_bits_per_byte(self.shards, plan, seed),
                )
                outcome = trainer.run(f"AdamW, seed {seed}")
                seconds = time.perf_counter() - start
                score = self.score(trainer.whole_model())
            return {"bits_per_byte": score, "steps": outcome.steps, "tokens": outcome.tokens, "seconds": seconds}

        return float(self.remembered(f"adamw-{rate:g}-{seed}", make)["bits_per_byte"])
