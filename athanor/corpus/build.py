"""Builds a corpus: sources stream through the rules into training and held-out documents, with counts and licences.

The folder holds `documents/train-NNNNN.jsonl` and `documents/heldout.jsonl`, `dropped.jsonl` (what fell to which rule),
`DATA_LICENSES.md` and, written last, `report.json`. The same sources, settings and seed give the same bytes. Memory is
bounded but for about a hundred bytes a document (duplicates) and the held-out documents.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import BinaryIO, Literal

from athanor.base.errors import DataError
from athanor.base.files import atomic_folder, atomic_path, write_json, write_text
from athanor.corpus.document import Document, from_line, to_line
from athanor.corpus.file_readers import ReadReport
from athanor.corpus.filters import (
    Drop,
    EvaluationIndex,
    decontaminate,
    evaluation_index,
    exact_duplicates,
    minimum_length,
    repair,
    repetition,
)
from athanor.corpus.heldout import HeldOut, near_duplicates, note_grams, place
from athanor.corpus.readers import read_sources, resolve
from athanor.corpus.report import CorpusReport, Count, SourceReport, TaskReport, licences_text

_FILE_BYTES = 64 << 20
_SHOWN_CHARACTERS = 500  # of a dropped text


def build_corpus(
    sources: Sequence[str | Path],
    evaluation_texts: Iterable[tuple[str, str]],
    folder: Path,
    seed: int = 0,
    held_out_share: float = 0.02,
    held_out_bytes: int = 1 << 20,
    minimum_terms: int | None = None,
    weights: Mapping[str, float] | None = None,
    limit_bytes: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> CorpusReport:
    """Reads, cleans, splits and writes; the module's description names the files.

    evaluation_texts: (task, text) pairs; documents that overlap them are dropped.
    held_out_share: of each source's documents, at least one and at most held_out_bytes.
    minimum_terms: replaces what each source sets.
    weights: by source, how often its training documents are written (0.5: every second, chosen by hash; 2: twice).
    limit_bytes: take about so much text, chosen by hash evenly over all sources.
    progress: called with (bytes read, bytes expected). Raises DataError, also when too little is left.
    """
    origins = resolve(sources)
    weights = _checked_weights(weights or {}, [origin.name for origin in origins])
    if not 0 < held_out_share < 1:
        raise DataError(
            f"The held-out share {held_out_share} is out of range.", "It lies between 0 and 1, for example 0.02."
        )
    settings = {
        "sources": [origin.name for origin in origins],
        "seed": seed,
        "held_out_share": held_out_share,
        "held_out_bytes": held_out_bytes,
        "minimum_terms": minimum_terms,
        "weights": weights,
        "limit_bytes": limit_bytes,
    }
    folder = Path(folder)
    expected = sum(origin.text_bytes for origin in origins)
    index = evaluation_index(evaluation_texts)
    skipped = ReadReport()
    minimum = {origin.name: origin.minimum_terms if minimum_terms is None else minimum_terms for origin in origins}
    with _Writer(folder, index, weights, seed) as writer:
        held_out = HeldOut(seed, held_out_share, held_out_bytes)
        wanted = 1.0 if limit_bytes is None else limit_bytes / max(1, expected)
        seen: set[bytes] = set()
        for document in _with_progress(read_sources(origins, skipped), expected, progress):
            if wanted >= 1 or place(seed, "sample", document.id) < wanted:
                kept = _clean(document, minimum[document.source], seen, index, writer)
                for certain in held_out.offer(kept) if kept else ():
                    writer.train(certain)
        held, released = held_out.finish()
        for document in released:
            writer.train(document)
        writer.hold_out(held, skipped)
    report = CorpusReport(
        settings, list(writer.counts.values()), writer.tasks, dict(sorted(skipped.skipped.items())), skipped.places
    )
    write_text(folder / "DATA_LICENSES.md", licences_text(report, origins))
    write_json(folder / "report.json", report.to_dict())
    return report


def iterate_documents(folder: Path, split: Literal["train", "heldout"]) -> Iterator[Document]:
    """Documents of a built corpus in their fixed order. Raises DataError when they are missing or damaged."""
    folder = Path(folder) / "documents"
    files = sorted(folder.glob("train-*.jsonl")) if split == "train" else [folder / "heldout.jsonl"]
    if not files or not all(file.is_file() for file in files):
        raise DataError(f"{folder} has no {split} documents.", "Build the corpus first.")
    for path in files:
        with open(path, "rb") as file:
            for line in file:
                yield from_line(line, str(path))


def _checked_weights(weights: Mapping[str, float], names: list[str]) -> dict[str, float]:
    for name, weight in weights.items():
        if name not in names:
            raise DataError(
                f"There is a weight for {name}, which is not a source.", f"Sources here: {', '.join(names)}."
            )
        if not 0 <= weight <= 100:
            raise DataError(f"The weight {weight} of {name} is out of range.", "Weights lie between 0 and 100.")
    return dict(sorted(weights.items()))


def _with_progress(
    documents: Iterator[Document], expected: int, progress: Callable[[int, int], None] | None
) -> Iterator[Document]:
    done = 0
    for document in documents:
        yield document
        done += document.n_bytes
        if progress:
            progress(done, max(done, expected))


def _clean(
    document: Document, minimum: int, seen: set[bytes], index: EvaluationIndex, writer: _Writer
) -> Document | None:
    """The document as the rules leave it, or None when it was dropped. Cheap rules come first."""
    counts = writer.counts_of(document)
    counts.read.add(document)
    mended = repair(document)
    if mended is not document:
        counts.repaired.add(mended)
    for rule in (
        partial(minimum_length, minimum=minimum),
        partial(exact_duplicates, seen=seen),
        repetition,
        partial(decontaminate, index=index),
    ):
        result = rule(mended)
        if isinstance(result, Drop):
            writer.drop(mended, result)
            return None
    return mended


class _Writer:
    """The open files of a build and its counts. Leaving it without an error puts the files in place."""

    def __init__(self, folder: Path, index: EvaluationIndex, weights: Mapping[str, float], seed: int) -> None:
        self.folder, self.weights, self.seed = folder, weights, seed
        self.counts: dict[tuple[str, str], SourceReport] = {}
        self.tasks = {
            task: TaskReport(texts, ignored)
            for task, texts, ignored in zip(index.tasks, index.texts, index.ignored, strict=True)
        }

    def __enter__(self) -> _Writer:
        with ExitStack() as stack:
            self._documents = stack.enter_context(atomic_folder(self.folder / "documents"))
            (self.folder / "report.json").unlink(missing_ok=True)  # it vouches for the rest
            self._dropped = stack.enter_context(
                open(stack.enter_context(atomic_path(self.folder / "dropped.jsonl")), "wb")
            )
            self._grams = stack.enter_context(tempfile.TemporaryFile(dir=self.folder))
            self._training = stack.enter_context(_TrainingFiles(self._documents))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.__exit__(*error)  # type: ignore[arg-type]

    def counts_of(self, document: Document) -> SourceReport:
        key = (document.source, document.language)
        if key not in self.counts:
            self.counts[key] = SourceReport(*key)
        return self.counts[key]

    def drop(self, document: Document, drop: Drop) -> None:
        self.counts_of(document).dropped.setdefault(drop.reason, Count()).add(document)
        if drop.reason == "decontaminate":
            self.tasks[drop.detail].dropped.add(document)
        shown = replace(document, text=document.text[:_SHOWN_CHARACTERS], meta={})
        self._dropped.write(to_line(shown, reason=drop.reason, detail=drop.detail, bytes=document.n_bytes))

    def train(self, document: Document) -> None:
        weight = self.weights.get(document.source, 1.0)
        times = int(weight) + (place(self.seed, "weight", document.id) < weight % 1)
        if not times:
            self.counts_of(document).dropped.setdefault("weight", Count()).add(document)
            return
        self._training.write(to_line(document), times)
        note_grams(document, self._grams)
        self.counts_of(document).training.add(document, times)

    def hold_out(self, documents: list[Document], skipped: ReadReport) -> None:
        """Writes the held-out documents but for near-duplicates of training. Raises DataError if a side is empty."""
        leaking = near_duplicates(documents, self._grams)
        with open(self._documents / "heldout.jsonl", "wb") as file:
            for document in documents:
                if document.id in leaking:
                    self.drop(document, Drop("held_out_near_duplicate"))
                else:
                    file.write(to_line(document))
                    self.counts_of(document).held_out.add(document)
        training = sum(entry.training.documents for entry in self.counts.values())
        held_out = sum(entry.held_out.documents for entry in self.counts.values())
        if not training or not held_out:
            unread = "".join(f" {place} was skipped: {reason}." for place, reason in skipped.places[:3])
            raise DataError(
                f"Too little text is left after the rules: {training} documents to train on, {held_out} held out."
                + unread,
                "Give more or longer texts; dropped.jsonl says why each was dropped.",
            )


class _TrainingFiles:
    """`train-00000.jsonl` and so on, a new one every 64 MB."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._number, self._size = folder, 0, 0
        self._file = self._open()

    def _open(self) -> BinaryIO:
        return open(self._folder / f"train-{self._number:05d}.jsonl", "wb")

    def __enter__(self) -> _TrainingFiles:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, line: bytes, times: int) -> None:
        for _ in range(times):
            if self._size and self._size + len(line) > _FILE_BYTES:
                self._file.close()
                self._number, self._size = self._number + 1, 0
                self._file = self._open()
            self._file.write(line)
            self._size += len(line)
