"""Each objective trains its kind of model on the default corpus for a minute, and is scored on held-out text against
the frequencies of the targets, or the most frequent answer; then what was learnt by masking and denoising is used to
tell the topic of a Wikipedia summary (11 of them), against the same network from scratch, three times each.

ATHANOR_BENCH_SECONDS changes the time of each training (default 60), ATHANOR_BENCH_BYTES the text (default 8000000).
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _rows import row
from torch import nn

from athanor.base.machine import usable_cores
from athanor.corpus.build import build_corpus, iterate_documents
from athanor.corpus.shards import Shards, write_shards
from athanor.evaluation.objectives import Score, against_frequencies, compare, held_out_batches, objective_scores
from athanor.models import (
    MlpConfig,
    ModelConfig,
    MoeConfig,
    standard_config,
)
from athanor.models.build import build
from athanor.models.shapes import CLASSIFIABLE, Objective, config_of
from athanor.pipeline.classify_stage import LabelledCorpus
from athanor.pipeline.recipe import ClassifyRecipe
from athanor.tokenizer import Tokenizer, train_tokenizer
from athanor.training.batches import Batch, DocumentPieces, PackedBatches
from athanor.training.classification import (
    classification,
    labelled_examples,
    told_classes,
    untrained_classifier,
    with_classifier,
)
from athanor.training.drawn import DrawnBatches
from athanor.training.loop import LoopConfig, Trainer
from athanor.training.objectives import (
    Distillation,
    ExpertBalance,
    next_token,
)
from athanor.training.optimizers import OptimizerConfig
from athanor.training.pretraining import OBJECTIVES, Vocabulary
from athanor.training.schedules import Schedule

ISSUE = "C"
LENGTH, ROWS, D_MODEL, LAYERS, VOCABULARY = 128, 32, 128, 4, 4096
HELD_OUT_BATCHES = 8
HELD_OUT_SHARE = 0.1  # so that there are enough topics to be told
FINE_TUNING_STEPS, FINE_ROWS, SEEDS = 100, 8, 3
OPTIMIZER = OptimizerConfig(embedding_lr=0.02)
PRETRAINED: dict[Objective, str] = {
    "masked_pairs": "BERT", "masked": "RoBERTa", "replaced": "ELECTRA", "spans": "T5", "ul2": "UL2",
    "prefix": "prefix LM", "infilling": "fill-in-the-middle",
}  # fmt: skip
Rows = Iterator[dict[str, Any]]


class Bench:
    """The text, and how long each training takes."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.seconds = folder, float(os.environ.get("ATHANOR_BENCH_SECONDS", "60"))
        build_corpus(
            ["default"], (), folder / "corpus", held_out_share=HELD_OUT_SHARE,
            limit_bytes=int(os.environ.get("ATHANOR_BENCH_BYTES", "8000000")),
        )  # fmt: skip
        texts = (document.text for document in iterate_documents(folder / "corpus", "train"))
        self.tokenizer = train_tokenizer(texts, VOCABULARY)
        self.train, self.held_out = (self._shards(split) for split in ("train", "heldout"))
        self.vocabulary = Vocabulary(self.tokenizer)
        self.special = self.vocabulary.special
        self.labelled = LabelledCorpus.read(folder / "corpus", ClassifyRecipe(label="topic"), self.tokenizer, 0)

    def _shards(self, split: Any) -> Shards:
        tokenizer: Tokenizer = self.tokenizer
        documents = iterate_documents(self.folder / "corpus", split)
        write_shards(
            documents,
            lambda texts: [ids.tolist() for ids in tokenizer.encode_many(texts, usable_cores())],
            tokenizer.end_of_text_id,
            self.folder / split,
            tokenizer.vocab_size,
        )
        return Shards.open(self.folder / split)

    def fit(self, model: nn.Module, objective: Any, source: Any, after_step: Any = None) -> None:
        start = time.monotonic()
        loop = LoopConfig(None, ROWS, OPTIMIZER, Schedule(10), 0.5)
        with tempfile.TemporaryDirectory() as folder:
            trainer = Trainer(
                model, objective, source, loop, Path(folder), after_step=after_step,
                remaining=lambda: self.seconds - (time.monotonic() - start),
            )  # fmt: skip
            trainer.run("Training")


def rows() -> Rows:
    torch.set_num_threads(usable_cores())
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        made = {}
        for objective, title in PRETRAINED.items():
            made[objective] = yield from pretrained(bench, objective, title)
        yield from experts(bench)
        yield from distilled(bench)
        for objective in sorted(CLASSIFIABLE):
            model = made[objective]
            yield from transfer(bench, PRETRAINED[objective], getattr(model, "discriminator", model))


# Models of about the same size, one a family.


SIZES = {"d_model": D_MODEL, "n_layers": LAYERS}


def untrained(bench: Bench, objective: Objective, seed: int) -> Any:
    config = config_of(objective)(bench.tokenizer.vocab_size, LENGTH, **SIZES)
    return OBJECTIVES[objective].new(config, bench.special, seed)


def decoder_config(bench: Bench, **options: Any) -> ModelConfig:
    return standard_config(bench.tokenizer.vocab_size, LENGTH, **{**SIZES, **options})


# Scores.


def shown(title: str, score: Score) -> Rows:
    """The rows of a score; no better than its baseline is not enough."""
    low, high = score.gain
    better = {"met": low > 0}
    yield row(title, score.value, score.unit, peer=score.baseline) | better
    yield row(f"{title}: gain, lower end of the 95 % interval", low, score.unit, target=0.0) | better
    yield row(f"{title}: gain, upper end", high, score.unit) | {"met": None}


def against_unigram(name: str, model: nn.Module, objective: Any, source: Any, held_out: list[Batch]) -> Rows:
    yield from shown(name, against_frequencies(name, model, objective, source, held_out, VOCABULARY))


def compared(name: str, ours: np.ndarray, theirs: np.ndarray, sizes: np.ndarray, unit: str, most: bool) -> Rows:
    yield from shown(name, compare(name, ours, theirs, sizes, unit, lower_is_better=most))


# One function an objective.


def pretrained(bench: Bench, objective: Objective, title: str) -> Iterator[dict[str, Any]]:
    """The rows of one of the objectives that recipes know; returns the model."""
    known, vocabulary = OBJECTIVES[objective], bench.vocabulary
    source, measured = (
        known.batches(text.tokens, text.offsets, vocabulary, ROWS, LENGTH, 0, held_out=text is bench.held_out)
        for text in (bench.train, bench.held_out)
    )
    model = untrained(bench, objective, 0)
    bench.fit(model, known.loss, source)
    held_out = held_out_batches(measured, HELD_OUT_BATCHES)
    for score in objective_scores(objective, model, source, held_out, vocabulary.special, VOCABULARY):
        yield from shown(f"{title}, {score.name}", score)
    return model


def plain(bench: Bench) -> tuple[PackedBatches, list[Batch]]:
    found = []
    for text in (bench.train, bench.held_out):
        pieces = DocumentPieces(text.tokens, text.offsets, LENGTH, bench.special.end)
        found.append(PackedBatches(pieces, ROWS, LENGTH, 0, pad_id=bench.special.end))
    return found[0], [found[1].next() for _ in range(HELD_OUT_BATCHES)]


def experts(bench: Bench) -> Rows:
    for name, options in (
        ("none", {"auxiliary": 0.0, "z": 0.0}),
        ("auxiliary loss", {}),
        ("bias", {"auxiliary": 0.0, "z": 0.0, "bias_rate": 0.001}),
    ):
        source, held_out = plain(bench)
        config = decoder_config(bench)
        moe = MoeConfig(8, 2, MlpConfig(D_MODEL), correction=True)
        model = build(replace(config, layers=tuple(replace(layer, mlp=moe) for layer in config.layers)), 0)
        balance = ExpertBalance(model, next_token, **options)  # type: ignore[arg-type]
        bench.fit(model, balance, source, balance.after_step)
        with torch.no_grad():
            losses = [balance(model, batch) for batch in held_out]
        load = np.mean([loss.metrics["expert_load"] / loss.count for loss in losses])
        yield row(f"8 experts, balance by {name}: the fullest's load over the mean", float(load), "ratio") | {
            "met": None
        }
        yield from against_unigram(f"8 experts, balance by {name}", model, next_token, source, held_out)


def distilled(bench: Bench) -> Rows:
    source, held_out = plain(bench)
    teacher = build(decoder_config(bench), 0)
    bench.fit(teacher, next_token, source)
    config = decoder_config(bench, n_layers=LAYERS // 2)
    measure, far = Distillation(teacher), {}
    for name, objective in (("text", next_token), ("teacher", Distillation(teacher))):
        source, _ = plain(bench)
        student = build(config, 1)
        bench.fit(student, objective, source)
        with torch.no_grad():
            losses = [measure(student, part) for batch in held_out for part in batch.split(1)]
        far[name] = np.array([float(loss.sum) / np.log(2) for loss in losses])
        sizes = np.array([loss.count for loss in losses])
    name = "divergence from the teacher, of a student of it against one of the text alone"
    yield from compared(name, far["teacher"], far["text"], sizes, "bits/token", True)


def transfer(bench: Bench, name: str, learnt: Any) -> Rows:
    """The topic of a text, told after a few steps: accuracies on held-out documents, means over the seeds."""
    data, special = bench.labelled, bench.special
    labels = [np.array(bench.tokenizer.encode(label)) for label in data.labels]
    right: dict[Any, list[np.ndarray]] = {with_classifier: [], untrained_classifier: []}
    for (make, answers), seed in product(right.items(), range(SEEDS)):
        model = make(learnt, data.labels, seed)
        source = DrawnBatches(labelled_examples(model, data.train, special, LENGTH, labels), FINE_ROWS, LENGTH, seed)
        loop = LoopConfig(FINE_TUNING_STEPS, FINE_ROWS, OPTIMIZER, Schedule(FINE_TUNING_STEPS // 10, 0.0, "linear"))
        with tempfile.TemporaryDirectory() as folder:
            Trainer(model, classification, source, loop, Path(folder)).run("Fine-tuning")
        asked = labelled_examples(model, data.held_out, special, LENGTH, labels)
        answers.append(told_classes(model, asked, "fp32") == data.held_out.classes)
    title = f"the topic of a text among {len(data.labels)}, {name} against itself from scratch"
    ours, theirs = (np.mean(answers, axis=0) for answers in right.values())
    yield from compared(title, ours, theirs, np.ones(len(data.held_out)), "accuracy", False)
