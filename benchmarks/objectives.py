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
from athanor.base.statistics import bootstrap_mean
from athanor.corpus.build import build_corpus, iterate_documents
from athanor.corpus.shards import Shards, write_shards
from athanor.models import (
    AttentionConfig,
    EmbeddingConfig,
    EncoderDecoderConfig,
    HeadConfig,
    LayerConfig,
    MlpConfig,
    ModelConfig,
    MoeConfig,
    NormConfig,
    RelativeBias,
    standard_config,
)
from athanor.models.build import build, new
from athanor.models.encoder import Encoder
from athanor.models.stack import Stack
from athanor.models.where import Where
from athanor.tokenizer import Tokenizer, train_tokenizer
from athanor.training.batches import IGNORED, Batch, DocumentPieces, PackedBatches
from athanor.training.denoisers import T5, UL2, CorruptedTexts
from athanor.training.drawn import DrawnBatches, Examples, Pieces, SpecialTokens
from athanor.training.loop import LoopConfig, Trainer
from athanor.training.masking import MaskedPairs, MaskedTexts, Masking
from athanor.training.objectives import (
    Distillation,
    Electra,
    ExpertBalance,
    denoising,
    masked_language_model,
    next_token,
    prefix_language_model,
    replaced_tokens,
)
from athanor.training.objectives.masked import encoded, next_sentence_logits
from athanor.training.objectives.replaced import discriminate, fill
from athanor.training.optimizers import OptimizerConfig
from athanor.training.prefixes import Infilling, PrefixTexts
from athanor.training.schedules import Schedule
from athanor.training.words import Words

ISSUE = "C"
LENGTH, ROWS, D_MODEL, LAYERS, VOCABULARY = 128, 32, 128, 4, 4096
HELD_OUT_BATCHES = 8
LABELLED, FINE_TUNING_STEPS = 512, 40  # documents whose source is told, and steps on them
OPTIMIZER = OptimizerConfig(embedding_lr=0.02)
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
        self.special, self.words = SpecialTokens.of(self.tokenizer), Words(self.tokenizer)

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

    def drawn(self, make: Callable[[Pieces], Examples], places: int) -> tuple[DrawnBatches, list[Batch]]:
        """The training batches, and held-out ones. places: what an example takes beside its piece."""
        found = []
        for text in (self.train, self.held_out):
            pieces = Pieces(text.tokens, text.offsets, LENGTH - places, 16)
            found.append(DrawnBatches(make(pieces), ROWS, LENGTH, 0))
        return found[0], [found[1].next() for _ in range(HELD_OUT_BATCHES)]


def rows() -> Rows:
    torch.set_num_threads(usable_cores())
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        encoder = yield from bert(bench)
        yield from roberta(bench)
        yield from electra(bench)
        t5 = yield from corrupted(bench)
        yield from decoders(bench)
        yield from experts(bench)
        yield from distilled(bench)
        yield from transfer(bench, "BERT", encoder, lambda: new(bert_config(bench, True), 1))
        yield from transfer(bench, "T5's encoder", t5.encoder, lambda: new(t5_config(bench), 1).encoder)


# Models of about the same size, one a family.


def bert_config(bench: Bench, pairs: bool) -> ModelConfig:
    norm = NormConfig(1e-12, "layer", True)
    heads = D_MODEL // 64
    attention = AttentionConfig(heads, heads, 64, None, bias=True, output_bias=True)
    layer = LayerConfig(attention, MlpConfig(4 * D_MODEL, "gelu", False, True), norm, "post")
    embedding = EmbeddingConfig(positions=LENGTH, token_types=2, norm=norm)
    head = HeadConfig(bias=True, transform="gelu")
    return ModelConfig(
        bench.tokenizer.vocab_size, D_MODEL, LENGTH, (layer,) * LAYERS, embedding, norm=None, head=head, causal=False,
        pooler=pairs, next_sentence=pairs, family="bert",
    )  # fmt: skip


def t5_config(bench: Bench) -> EncoderDecoderConfig:
    heads = D_MODEL // 64
    attention = AttentionConfig(heads, heads, 64, RelativeBias(), scale=1.0)
    layer = LayerConfig(attention, MlpConfig(4 * D_MODEL, "relu", False))
    encoder = ModelConfig(bench.tokenizer.vocab_size, D_MODEL, LENGTH, (layer,) * LAYERS, head=None, causal=False)
    reading = replace(layer, cross_attention=replace(attention, position=None))
    decoder = replace(encoder, layers=(reading,) * LAYERS, head=HeadConfig(scale=D_MODEL**-0.5), causal=True)
    return EncoderDecoderConfig(encoder, decoder, bench.special.end)


def decoder_config(bench: Bench, **options: Any) -> ModelConfig:
    return standard_config(bench.tokenizer.vocab_size, LENGTH, **{"d_model": D_MODEL, "n_layers": LAYERS, **options})


# Scores.


def against_unigram(name: str, model: nn.Module, objective: Any, source: Any, held_out: list[Batch]) -> Rows:
    """Bits a target, against the frequencies that targets have in training."""
    position = source.get_position()
    counts = np.ones(VOCABULARY)
    for _ in range(20):
        targets = source.next().targets
        counts += np.bincount(targets[targets != IGNORED].numpy(), minlength=VOCABULARY)
    source.set_position(position)
    unigram = -np.log2(counts / counts.sum())
    ours, theirs, sizes = [], [], []
    with torch.no_grad():
        for part in (part for batch in held_out for part in batch.split(1) if part.n_targets):
            loss = objective(model, part)
            ours.append(float(loss.metrics.get("masked", loss.sum)) / np.log(2))
            theirs.append(unigram[part.targets[part.targets != IGNORED].numpy()].sum())
            sizes.append(loss.count)
    yield from compared(name, np.array(ours), np.array(theirs), np.array(sizes), "bits/token", most=True)


def compared(name: str, ours: np.ndarray, theirs: np.ndarray, sizes: np.ndarray, unit: str, most: bool) -> Rows:
    """ours, theirs, sizes: sums over the places of each text or row, and their number."""
    low, high = bootstrap_mean(((theirs - ours) if most else (ours - theirs)) / sizes.mean())
    better = {"met": low > 0}  # no better is not enough
    yield row(name, float(ours.sum() / sizes.sum()), unit, peer=float(theirs.sum() / sizes.sum())) | better
    yield row(f"{name}: gain, lower end of the 95 % interval", low, unit, target=0.0) | better
    yield row(f"{name}: gain, upper end", high, unit) | {"met": None}


# One function an objective.


def bert(bench: Bench) -> Iterator[dict[str, Any]]:
    source, held_out = bench.drawn(lambda p: MaskedPairs(p, bench.special, Masking(bench.words), bench.words, 0), 3)
    model = new(bert_config(bench, True))
    assert isinstance(model, Encoder)
    bench.fit(model, masked_language_model, source)
    yield from against_unigram("BERT, hidden words", model, masked_language_model, source, held_out)
    right = []
    with torch.no_grad():
        for batch in held_out:
            logits = next_sentence_logits(model, encoded(model, batch), batch)  # type: ignore[arg-type]
            right.append(logits.argmax(-1) == batch.pair_labels[batch.pair_labels != IGNORED])  # type: ignore[attr-defined]
    found = torch.cat(right).double().numpy()
    yield from compared("BERT, next sentence", found, np.full_like(found, 0.5), np.ones_like(found), "accuracy", False)
    return model


def roberta(bench: Bench) -> Rows:
    source, held_out = bench.drawn(lambda p: MaskedTexts(p, bench.special, Masking(), 0), 2)
    model = new(bert_config(bench, False))
    bench.fit(model, masked_language_model, source)
    yield from against_unigram("RoBERTa, hidden tokens", model, masked_language_model, source, held_out)


def electra(bench: Bench) -> Rows:
    masking = Masking(masked=1.0, replaced=0.0)
    source, held_out = bench.drawn(lambda p: MaskedTexts(p, bench.special, masking, 0), 2)
    large = bert_config(bench, False)
    small = replace(large, layers=large.layers[: LAYERS // 2])
    head = HeadConfig(tied=False, bias=True, transform="gelu", transform_norm=False, outputs=1)
    model = Electra.new(small, replace(large, head=head))
    bench.fit(model, replaced_tokens, source)
    right, kept, sizes = [], [], []
    with torch.no_grad():
        for part in (part for batch in held_out for part in batch.split(1)):
            logits, labels = discriminate(model.discriminator, part, fill(model.generator, part))  # type: ignore[arg-type]
            right.append(float(((logits > 0) == labels.bool()).sum()))
            kept.append(float((labels == 0).sum()))
            sizes.append(len(labels))
    name = "ELECTRA, replaced tokens, against always saying no"
    yield from compared(name, np.array(right), np.array(kept), np.array(sizes), "accuracy", False)


def corrupted(bench: Bench) -> Iterator[dict[str, Any]]:
    models = []
    for name, denoisers in (("T5, hidden spans", T5), ("UL2, mixture of denoisers", UL2)):
        source, held_out = bench.drawn(
            lambda p, d=denoisers: CorruptedTexts(p, bench.special, d, bench.special.end, 0), 2
        )  # type: ignore[misc]
        models.append(new(t5_config(bench)))
        bench.fit(models[-1], denoising, source)
        yield from against_unigram(name, models[-1], denoising, source, held_out)
    return models[0]


def decoders(bench: Bench) -> Rows:
    source, held_out = bench.drawn(lambda p: PrefixTexts(p, bench.special, 0), 1)
    model = build(decoder_config(bench), 0)
    bench.fit(model, prefix_language_model, source)
    yield from against_unigram("prefix LM", model, prefix_language_model, source, held_out)
    source, _ = bench.drawn(lambda p: Infilling(p, bench.special, 0), 4)
    model = build(decoder_config(bench), 0)
    bench.fit(model, next_token, source)
    source, held_out = bench.drawn(lambda p: Infilling(p, bench.special, 0, rate=1.0), 4)
    only = [only_middles(batch, bench.special) for batch in held_out]
    yield from against_unigram("fill-in-the-middle, the middle", model, next_token, source, only)


def only_middles(batch: Batch, special: SpecialTokens) -> Batch:
    """Targets behind a PSM text's middle token; behind an SPM one's, prefix and middle cannot be told apart."""
    targets = torch.full_like(batch.targets, IGNORED)
    for line in range(len(batch.tokens)):
        for document in range(int(batch.document_ids[line].max()) + 1):
            places = (batch.document_ids[line] == document).nonzero().squeeze(1)
            tokens = batch.tokens[line, places]
            if tokens[2] != special.suffix:  # end of text, prefix, then suffix: SPM
                behind = places[(tokens == special.middle).cumsum(0).bool()]
                targets[line, behind] = batch.targets[line, behind]
    return replace(batch, targets=targets)


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
