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
    """A one-dimensional .npy file written front to back; the length goes into its header at the end."""

    def __init__(self, path: Path, dtype: np.dtype[Any]) -> None:
        self.dtype, self.length = dtype, 0
        self._file: BinaryIO = open(path, "wb")  # noqa: SIM115 - closed by close()
        self._header()

    def _header(self) -> None:
        # numpy pads the header for lengths of up to 21 digits, so it can be written again in place
        np.lib.format.write_array_header_1_0(
            self._file,
            {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False, "shape": (self.length,)},
        )

    def append(self, values: np.ndarray) -> None:
        self._file.write(values.astype(self.dtype, copy=False).tobytes())
        self.length += len(values)

    def close(self) -> None:
        self._file.seek(0)
        self._header()
        self._file.close()


def write_shards(
    documents: Iterable[Document],
    encode_many: Callable[[list[str]], list[list[int]]],
    end_of_text_id: int,
    folder: Path,
    vocab_size: int = 1 << 16,
) -> ShardIndex:
    """Encodes the documents in batches, in order, and writes the folder in one step.

    vocab_size: token ids lie below it; ids are stored as uint16 up to 65,536 and as uint32 above.
    Raises DataError when there is no document or an id is out of range.
    """
    folder = Path(folder)
    kinds = (np.uint16 if vocab_size <= 1 << 16 else np.uint32, np.int64, np.uint16, np.int64)
    entries: dict[tuple[str, str], list[int]] = {}
    with atomic_folder(folder) as temporary:
        files = {
            name: _GrowingArray(temporary / f"{name}.npy", np.dtype(kind))
            for name, kind in zip(_ARRAYS, kinds, strict=True)
        }
        files["offsets"].append(np.zeros(1, dtype=np.int64))
        for batch in _batches(documents):
            ids = _encode(batch, encode_many, end_of_text_id, vocab_size)
            lengths = np.array([len(one) for one in ids], dtype=np.int64)
            sizes = np.array([document.n_bytes for document in batch], dtype=np.int64)
            files["offsets"].append(files["tokens"].length + np.cumsum(lengths))
            files["tokens"].append(np.concatenate(ids))
            files["bytes"].append(sizes)
            files["sources"].append(_count(entries, batch, lengths, sizes))
        for file in files.values():
            file.close()
        if not files["bytes"].length:
            raise DataError(f"There is no document to write to {folder}.")
        sources = tuple(ShardSource(*key, *counts) for key, counts in entries.items())
        index = ShardIndex(
            sources=sources,
            n_documents=files["bytes"].length,
            n_tokens=files["tokens"].length,
            n_bytes=sum(source.bytes for source in sources),
            end_of_text_id=end_of_text_id,
            vocab_size=vocab_size,
            sha256={name: sha256_file(temporary / f"{name}.npy") for name in _ARRAYS},
        )
        write_json(temporary / "index.json", asdict(index))
    return index


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


def _encode(
    batch: list[Document], encode_many: Callable[[list[str]], list[list[int]]], end_of_text_id: int, vocab_size: int
) -> list[np.ndarray]:
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
