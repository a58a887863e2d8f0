"""Token shards: a corpus as memory-mapped token ids with document borders, what training and measuring read.

`tokens.npy` holds all documents one after the other, each followed by the end-of-text id and preceded by nothing;
`offsets.npy` (documents + 1, int64) their borders, `sources.npy` (uint16) each one's entry in the list of sources of
`index.json`, `bytes.npy` (int64) the UTF-8 length of each text (for bits per byte).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from athanor.base.errors import AthanorError, DataError
from athanor.base.files import atomic_folder, read_json, sha256_file, write_json
from athanor.corpus.document import Document

_BATCH_BYTES = 1 << 20  # of text, encoded in one call
_HASHED_AT_OPENING = 256 << 20  # larger files are checked by size and structure only
_ARRAYS = ("tokens", "offsets", "sources", "bytes")


@dataclass(frozen=True)
class ShardSource:
    """Counts of one source in one language; tokens include the end-of-text ids."""

    name: str
    language: str
    documents: int
    tokens: int
    bytes: int


@dataclass(frozen=True)
class ShardIndex:
    """`index.json`. sha256: of each array file, by name without suffix."""

    sources: tuple[ShardSource, ...]
    n_documents: int
    n_tokens: int
    n_bytes: int
    end_of_text_id: int
    vocab_size: int
    sha256: dict[str, str]


class _GrowingArray:
    """A one-dimensional .npy file written front to back; the length goes into its header at the end. It is open only
    while something is added, so that any number of them can grow at a time.
    """

    def __init__(self, path: Path, dtype: np.dtype[Any]) -> None:
        self.path, self.dtype, self.length = path, dtype, 0
        with open(path, "wb") as file:
            self._header(file)

    def _header(self, file: BinaryIO) -> None:
        # numpy pads the header for lengths of up to 21 digits, so it can be written again in place
        np.lib.format.write_array_header_1_0(
            file,
            {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False, "shape": (self.length,)},
        )

    def append(self, values: np.ndarray) -> None:
        with open(self.path, "ab") as file:
            file.write(values.astype(self.dtype, copy=False).tobytes())
        self.length += len(values)

    def close(self) -> None:
        with open(self.path, "r+b") as file:
            self._header(file)


class ShardWriter:
    """The arrays of one folder of shards, batch by batch.

    vocab_size: token ids lie below it; ids are stored as uint16 up to 65,536 and as uint32 above.
    """

    def __init__(self, folder: Path, end_of_text_id: int, vocab_size: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        kinds = (np.uint16 if vocab_size <= 1 << 16 else np.uint32, np.int64, np.uint16, np.int64)
        self.folder, self.end_of_text_id, self.vocab_size = folder, end_of_text_id, vocab_size
        self._entries: dict[tuple[str, str], list[int]] = {}
        self._files = {
            name: _GrowingArray(folder / f"{name}.npy", np.dtype(kind))
            for name, kind in zip(_ARRAYS, kinds, strict=True)
        }
        self._files["offsets"].append(np.zeros(1, dtype=np.int64))

    def add(self, documents: list[Document], ids: list[np.ndarray]) -> None:
        """ids: of each document, with the end-of-text id last."""
        lengths = np.array([len(one) for one in ids], dtype=np.int64)
        sizes = np.array([document.n_bytes for document in documents], dtype=np.int64)
        self._files["offsets"].append(self._files["tokens"].length + np.cumsum(lengths))
        self._files["tokens"].append(np.concatenate(ids))
        self._files["bytes"].append(sizes)
        self._files["sources"].append(_count(self._entries, documents, lengths, sizes))

    def finish(self) -> ShardIndex:
        """Writes `index.json`. Raises DataError when there is no document."""
        for file in self._files.values():
            file.close()
        if not self._files["bytes"].length:
            raise DataError(f"There is no document to write to {self.folder}.")
        sources = tuple(ShardSource(*key, *counts) for key, counts in self._entries.items())
        index = ShardIndex(
            sources=sources,
            n_documents=self._files["bytes"].length,
            n_tokens=self._files["tokens"].length,
            n_bytes=sum(source.bytes for source in sources),
            end_of_text_id=self.end_of_text_id,
            vocab_size=self.vocab_size,
            sha256={name: sha256_file(self.folder / f"{name}.npy") for name in _ARRAYS},
        )
        write_json(self.folder / "index.json", asdict(index))
        return index


Encode = Callable[[list[str]], list[list[int]]]


def write_shards(
    documents: Iterable[Document],
    encode_many: Encode,
    end_of_text_id: int,
    folder: Path,
    vocab_size: int = 1 << 16,
) -> ShardIndex:
    """Encodes the documents in batches, in order, and writes the folder in one step.

    Raises DataError when there is no document or an id is out of range.
    """
    with atomic_folder(Path(folder)) as temporary:
        writer = ShardWriter(temporary, end_of_text_id, vocab_size)
        for batch, ids in encoded(documents, encode_many, end_of_text_id, vocab_size):
            writer.add(batch, ids)
        try:
            return writer.finish()
        except DataError:
            raise DataError(f"There is no document to write to {folder}.") from None


def encoded(
    documents: Iterable[Document], encode_many: Encode, end_of_text_id: int, vocab_size: int
) -> Iterator[tuple[list[Document], list[np.ndarray]]]:
    """The documents in batches, and the ids of each with the end-of-text id last."""
    for batch in _batches(documents):
        yield batch, _encode(batch, encode_many, end_of_text_id, vocab_size)


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += document.n_bytes
        if size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _encode(batch: list[Document], encode_many: Encode, end_of_text_id: int, vocab_size: int) -> list[np.ndarray]:
    ids = [
        np.array([*one, end_of_text_id], dtype=np.int64) for one in encode_many([document.text for document in batch])
    ]
    if len(ids) != len(batch):
        raise DataError(f"The tokenizer gave {len(ids)} lists of ids for {len(batch)} texts.")
    for document, one in zip(batch, ids, strict=True):
        if one.min() < 0 or one.max() >= vocab_size:
            raise DataError(
                f"{document.id} has a token id outside of the vocabulary of {vocab_size}.", "Train the tokenizer again."
            )
    return ids


def _count(
    entries: dict[tuple[str, str], list[int]], batch: list[Document], lengths: np.ndarray, sizes: np.ndarray
) -> np.ndarray:
    """Adds the batch to the counts of its sources; returns each document's entry."""
    for document, length, size in zip(batch, lengths.tolist(), sizes.tolist(), strict=True):
        counts = entries.setdefault((document.source, document.language), [0, 0, 0])
        counts[:] = counts[0] + 1, counts[1] + length, counts[2] + size
    places = {key: place for place, key in enumerate(entries)}
    if len(places) > 1 << 16:
        raise DataError("There are more than 65,536 sources.", "Put files into fewer folders.")
    return np.array([places[document.source, document.language] for document in batch], dtype=np.uint16)


class Shards:
    """An opened folder of shards; all arrays are read-only memory maps.

    tokens: (n_tokens,) uint16 or uint32. offsets: (n_documents + 1,) int64. sources: (n_documents,) entries of
    `index.sources`. bytes: (n_documents,) int64.
    """

    def __init__(
        self, index: ShardIndex, tokens: np.ndarray, offsets: np.ndarray, sources: np.ndarray, sizes: np.ndarray
    ) -> None:
        self.index, self.tokens, self.offsets, self.sources, self.bytes = index, tokens, offsets, sources, sizes

    @classmethod
    def open(cls, folder: Path | str) -> Shards:
        """Raises DataError when a file is missing, truncated or damaged."""
        folder = Path(folder)
        try:
            index = _read_index(folder)
            tokens, offsets, sources, sizes = (_map(folder / f"{name}.npy", index.sha256[name]) for name in _ARRAYS)
            _check(index, tokens, offsets, sources, sizes)
        except (OSError, ValueError, KeyError, TypeError, AthanorError) as error:
            raise DataError(
                f"The shards in {folder} are missing or damaged ({error}).",
                f"Remove {folder.parent}; the next run makes them again.",
            ) from error
        return cls(index, tokens, offsets, sources, sizes)

    def __len__(self) -> int:
        """The number of documents."""
        return self.index.n_documents

    @property
    def n_tokens(self) -> int:
        return self.index.n_tokens

    def document(self, i: int) -> np.ndarray:
        """Token ids of document i with the end-of-text id last: a view into the map."""
        if not 0 <= i < len(self):
            raise IndexError(f"document {i} of {len(self)}")
        return self.tokens[self.offsets[i] : self.offsets[i + 1]]

    def bytes_of(self, i: int) -> int:
        """UTF-8 length of the text of document i."""
        return int(self.bytes[i])

    def source_of(self, i: int) -> ShardSource:
        return self.index.sources[self.sources[i]]


def _read_index(folder: Path) -> ShardIndex:
    value = read_json(folder / "index.json")
    sources = tuple(ShardSource(**source) for source in value.pop("sources"))
    return ShardIndex(sources=sources, **value)


def _map(path: Path, sha256: str) -> np.ndarray:
    if path.stat().st_size <= _HASHED_AT_OPENING and sha256_file(path) != sha256:
        raise ValueError(f"{path.name} has another hash than index.json says")
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if array.ndim != 1:
        raise ValueError(f"{path.name} is not a list of numbers")
    return array


def _check(index: ShardIndex, tokens: np.ndarray, offsets: np.ndarray, sources: np.ndarray, sizes: np.ndarray) -> None:
    if len(tokens) != index.n_tokens or tokens.dtype not in (np.uint16, np.uint32):
        raise ValueError("tokens.npy does not have the length or type that index.json says")
    if not len(sources) == len(sizes) == len(offsets) - 1 == index.n_documents:
        raise ValueError("the arrays do not have the number of documents that index.json says")
    if offsets[0] != 0 or offsets[-1] != len(tokens) or (np.diff(offsets) < 1).any():
        raise ValueError("offsets.npy does not divide the tokens into documents")
    if len(sources) and sources.max() >= len(index.sources):
        raise ValueError("sources.npy names a source that index.json does not have")
