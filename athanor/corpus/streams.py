"""Streamed corpora: tokenised text in many shards, for what does not fit on one disk.

A streamed corpus is a folder, here or elsewhere, that nothing is ever added to: `stream.json` names every file with its
size and hash, `train/NNNNN/` is one shard (the folder that `Shards` opens), `heldout/` the held-out documents,
`tokenizer/` the tokenizer, and `corpus/` the report and licences of the text. Documents are spread over the shards by
the seed, so that each is a sample of the whole.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from athanor.base.errors import AthanorError, DataError
from athanor.base.files import atomic_folder, read_json, sha256_file, write_json
from athanor.base.randomness import request_key, uniforms
from athanor.base.storage import Storage, StoredFile
from athanor.corpus.build import iterate_documents
from athanor.corpus.document import Document
from athanor.corpus.shards import ShardWriter, encoded, write_shards
from athanor.tokenizer import Tokenizer

SCHEMA_VERSION = 1
INDEX = "stream.json"
DEFAULT_CACHE_BYTES = 8 << 30
_REPORT = ("report.json", "DATA_LICENSES.md")
_MOST_SHARDS = 100_000


@dataclass(frozen=True)
class StreamShard:
    """What training reads of a shard: two of its files."""

    tokens: StoredFile
    offsets: StoredFile
    n_tokens: int
    n_documents: int

    @property
    def size(self) -> int:
        """Bytes."""
        return self.tokens.size + self.offsets.size


@dataclass(frozen=True)
class StreamIndex:
    """`stream.json`. files: all others that a run needs."""

    shards: tuple[StreamShard, ...]
    files: tuple[StoredFile, ...]
    vocab_size: int
    end_of_text_id: int

    @property
    def n_tokens(self) -> int:
        return sum(shard.n_tokens for shard in self.shards)

    @property
    def n_documents(self) -> int:
        return sum(shard.n_documents for shard in self.shards)

    def to_json(self) -> dict[str, Any]:
        return {"schema_version": SCHEMA_VERSION, **asdict(self)}

    @classmethod
    def of_json(cls, value: Any, where: str) -> StreamIndex:
        """Raises DataError for what is no such index."""
        version = value.get("schema_version") if isinstance(value, dict) else None
        if isinstance(version, int) and version > SCHEMA_VERSION:
            raise DataError(f"{where} was made by a newer version of Athanor.", "Upgrade athanor-lm.")
        try:
            shards = tuple(
                StreamShard(_file(s["tokens"]), _file(s["offsets"]), _count(s["n_tokens"]), _count(s["n_documents"]))
                for s in value["shards"]
            )
            files = tuple(_file(file) for file in value["files"])
            index = cls(shards, files, _count(value["vocab_size"]), _count(value["end_of_text_id"]))
            if not shards or version != SCHEMA_VERSION or index.end_of_text_id >= index.vocab_size:
                raise ValueError
        except (KeyError, TypeError, ValueError):
            raise DataError(
                f"{where} is not the index of a streamed corpus.", "Make one with athanor corpus stream."
            ) from None
        return index


def _file(value: Any) -> StoredFile:
    file = StoredFile(str(value["path"]), _count(value["size"]), str(value["sha256"]))
    parts = file.path.split("/")
    if len(file.sha256) != 64 or set(file.sha256) - set("0123456789abcdef") or {"", ".", ".."} & set(parts):
        raise ValueError(file.path)
    if "\\" in file.path or ":" in file.path:  # would lead elsewhere on Windows
        raise ValueError(file.path)
    return file


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(value)
    return value


def read_index(storage: Storage) -> StreamIndex:
    """Of the streamed corpus there. Raises DataError."""
    return StreamIndex.of_json(storage.read_json(INDEX), f"{storage.address}/{INDEX}")


def fetch_beside(storage: Storage, index: StreamIndex, prefix: str, folder: Path) -> None:
    """Brings the files below `prefix` into `folder`, which appears in one step. Raises DataError."""
    wanted = [file for file in index.files if file.path.startswith(f"{prefix}/")]
    if not wanted:
        raise DataError(f"{storage.address} has no {prefix}.", "Make it again with athanor corpus stream.")
    with atomic_folder(folder) as temporary:
        for file in wanted:
            target = temporary / file.path.removeprefix(f"{prefix}/")
            target.parent.mkdir(parents=True, exist_ok=True)
            storage.fetch(file, target)


def write_stream(
    corpus: Path,
    tokenizer: Tokenizer,
    folder: Path,
    *,
    shard_bytes: int = 256 << 20,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> StreamIndex:
    """Makes a streamed corpus of a built one.

    shard_bytes: of text in a shard, about. progress: called with (documents done, documents in all). Raises DataError.
    """
    report = read_json(corpus / "report.json") if (corpus / "report.json").is_file() else None
    try:
        counts = [entry["training"] for entry in report["sources"]]  # type: ignore[index]
        n_bytes, n_documents = (sum(count[key] for count in counts) for key in ("bytes", "documents"))
    except (KeyError, TypeError):
        raise DataError(f"{corpus} holds no finished corpus.", "Build one with athanor corpus build.") from None
    n_shards = max(1, -(-n_bytes // shard_bytes))
    if n_shards > _MOST_SHARDS:
        raise DataError(f"That would be {n_shards:,} shards, at most are {_MOST_SHARDS:,}.", "Make them larger.")
    if folder.exists() and not (folder / INDEX).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder} is there and is no streamed corpus.", "Choose another folder, or move it away.")
    with atomic_folder(folder) as temporary:

        def encode_many(texts: list[str]) -> list[list[int]]:
            return [ids.tolist() for ids in tokenizer.encode_many(texts, threads=2)]

        end, size = tokenizer.end_of_text_id, tokenizer.vocab_size
        documents = _watched(iterate_documents(corpus, "train"), n_documents, progress)
        writers = _spread(encoded(documents, encode_many, end, size), temporary / "train", n_shards, seed, end, size)
        write_shards(iterate_documents(corpus, "heldout"), encode_many, end, temporary / "heldout", size)
        tokenizer.save(temporary / "tokenizer")
        (temporary / "corpus").mkdir()
        for name in _REPORT:
            shutil.copyfile(corpus / name, temporary / "corpus" / name)
        shards = tuple(_finished(writer, temporary) for _, writer in sorted(writers.items()))
        beside = tuple(
            _stored(path, temporary)
            for part in ("corpus", "heldout", "tokenizer")
            for path in sorted((temporary / part).rglob("*"))
            if path.is_file()
        )
        index = StreamIndex(shards, beside, size, end)
        write_json(temporary / INDEX, index.to_json())
    return index


def _watched(
    documents: Iterator[Document], total: int, progress: Callable[[int, int], None] | None
) -> Iterator[Document]:
    for number, document in enumerate(documents):
        yield document
        if progress is not None and number % 256 == 0:
            progress(number, total)


def _spread(
    batches: Iterator[tuple[list[Document], list[np.ndarray]]],
    folder: Path,
    n_shards: int,
    seed: int,
    end_of_text_id: int,
    vocab_size: int,
) -> dict[int, ShardWriter]:
    """Writes each document to the shard that the seed says. Returns the writers of shards that have one, by number."""
    writers: dict[int, ShardWriter] = {}
    key, done = np.asarray(request_key(seed, "stream shard")), 0
    for documents, ids in batches:
        numbers = (uniforms(key, np.arange(done, done + len(documents))) * n_shards).astype(int)
        done += len(documents)
        for number in np.unique(numbers).tolist():
            own = np.flatnonzero(numbers == number).tolist()
            if number not in writers:
                writers[number] = ShardWriter(folder / f"{number:05d}", end_of_text_id, vocab_size)
            writers[number].add([documents[i] for i in own], [ids[i] for i in own])
    return writers


def _finished(writer: ShardWriter, root: Path) -> StreamShard:
    index = writer.finish()
    tokens, offsets = (_stored(writer.folder / f"{name}.npy", root) for name in ("tokens", "offsets"))
    return StreamShard(tokens, offsets, index.n_tokens, index.n_documents)


def _stored(path: Path, root: Path) -> StoredFile:
    return StoredFile(path.relative_to(root).as_posix(), path.stat().st_size, sha256_file(path))


def open_arrays(tokens: Path, offsets: Path, shard: StreamShard) -> tuple[np.ndarray, np.ndarray]:
    """Memory maps of a shard's files. Raises DataError where they do not fit together."""
    try:
        ids, borders = (np.load(path, mmap_mode="r", allow_pickle=False) for path in (tokens, offsets))
        fits = ids.ndim == borders.ndim == 1 and ids.dtype in (np.uint16, np.uint32) and borders.dtype == np.int64
        if not fits or len(ids) != shard.n_tokens or len(borders) != shard.n_documents + 1:
            raise ValueError("they do not have the lengths or types that the index says")
        if borders[0] != 0 or borders[-1] != len(ids) or (np.diff(borders) < 1).any():
            raise ValueError("the offsets do not divide the tokens into documents")
    except (OSError, ValueError, AthanorError) as error:
        raise DataError(f"The shard {shard.tokens.path} cannot be used ({error}).", "Make the corpus again.") from None
    return ids, borders
