"""Each objective trains its kind of model on the default corpus for a minute, and is scored on held-out text against
the frequencies of the targets, or the most frequent answer; then what was learnt by masking and denoising is used to
tell a text's source, against the same network from scratch.

ATHANOR_BENCH_SECONDS changes the time of each training (default 60), ATHANOR_BENCH_BYTES the text (default 8000000).
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from _rows import row
from torch import Tensor, nn

from athanor.base.machine import usable_cores
from athanor.base.randomness import generator
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
from athanor.models.shapes import Objective, config_of
from athanor.models.stack import Stack
from athanor.models.where import Where
from athanor.tokenizer import Tokenizer, train_tokenizer
from athanor.training.batches import Batch, DocumentPieces, PackedBatches
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
LABELLED, FINE_TUNING_STEPS = 512, 40  # documents whose source is told, and steps on them
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
            ["default"], (), folder / "corpus", limit_bytes=int(os.environ.get("ATHANOR_BENCH_BYTES", "8000000"))
        )
        texts = (document.text for document in iterate_documents(folder / "corpus", "train"))
        self.tokenizer = train_tokenizer(texts, VOCABULARY)
        self.train, self.held_out = (self._shards(split) for split in ("train", "heldout"))
        self.vocabulary = Vocabulary(self.tokenizer)
        self.special = self.vocabulary.special

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
        bert, t5 = made["masked_pairs"], made["spans"].encoder
        yield from transfer(bench, "BERT", bert, lambda: untrained(bench, "masked_pairs", 1))
        yield from transfer(bench, "T5's encoder", t5, lambda: untrained(bench, "spans", 1).encoder)


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


class Classifier(nn.Module):
    """The mean state of a text, and one matrix."""

    def __init__(self, stack: Stack, classes: int) -> None:
        super().__init__()
        self.stack, self.output = stack, nn.Linear(stack.config.d_model, classes)
        nn.init.zeros_(self.output.weight)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        positions = torch.arange(tokens.shape[1]).expand_as(tokens)
        states = Stack.forward(self.stack, tokens, Where(positions, causal=False, valid=mask))
        logits: Tensor = self.output((states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))
        return logits


def transfer(bench: Bench, name: str, learnt: Any, scratch: Callable[[], Any]) -> Rows:
    """Which source a text is from, told after a few steps on a few texts."""
    sources = sorted({source.name for source in bench.train.index.sources})
    picks = generator(0, "labelled").permutation(len(bench.train))[:LABELLED]
    trained = [labelled(bench.train, int(i), sources) for i in picks]
    asked = [labelled(bench.held_out, i, sources) for i in range(min(len(bench.held_out), 1000))]
    right = {}
    for kind, stack in (("learnt", learnt), ("scratch", scratch())):
        model = Classifier(stack, len(sources))
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        for step in range(FINE_TUNING_STEPS):
            chosen = generator(0, "step", step).choice(len(trained), ROWS)
            tokens, mask, labels = padded([trained[i] for i in chosen], bench.special.end)
            optimizer.zero_grad()
            F.cross_entropy(model(tokens, mask), labels).backward()
            optimizer.step()
        with torch.no_grad():
            parts = [padded(asked[i : i + 50], bench.special.end) for i in range(0, len(asked), 50)]
            found = [model(tokens, mask).argmax(-1) == labels for tokens, mask, labels in parts]
        right[kind] = torch.cat(found).double().numpy()
    sizes = np.ones(len(asked))
    title = f"the source of a text among {len(sources)}, {name} against itself from scratch"
    yield from compared(title, right["learnt"], right["scratch"], sizes, "accuracy", False)


def labelled(text: Shards, index: int, sources: list[str]) -> tuple[np.ndarray, int]:
    return text.document(index)[: LENGTH - 1].astype(np.int64), sources.index(text.source_of(index).name)


def padded(examples: list[tuple[np.ndarray, int]], pad_id: int) -> tuple[Tensor, Tensor, Tensor]:
    lengths = torch.tensor([len(ids) for ids, _ in examples])
    tokens = nn.utils.rnn.pad_sequence([torch.from_numpy(ids) for ids, _ in examples], True, pad_id)
    return tokens, torch.arange(tokens.shape[1]) < lengths[:, None], torch.tensor([label for _, label in examples])
