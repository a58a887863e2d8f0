"""The shards of a streamed corpus on this machine: at most so many bytes of them, the next ones fetched while the
present ones are read.

Files are named by their hash, so runs share them. One of a corpus that lies here is read where it lies.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np

from athanor.base.downloads import cache_folder
from athanor.base.errors import DataError
from athanor.base.files import locked
from athanor.base.progress import size
from athanor.base.storage import Storage, StoredFile, check
from athanor.corpus.streams import DEFAULT_CACHE_BYTES, StreamIndex, StreamShard, open_arrays, read_index

T = TypeVar("T")
TOGETHER = 4  # shards whose documents are mixed


class Ahead(Generic[T]):
    """Something that a thread makes meanwhile."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._made: list[T] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(make,), name="prefetch", daemon=True)
        self._thread.start()

    def _run(self, make: Callable[[], T]) -> None:
        try:
            self._made.append(make())
        except BaseException as error:  # raised where the result is asked for
            self._error = error

    def result(self) -> T:
        """Waits for it. Raises what making it raised."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._made[0]


class TextStream:
    """A streamed corpus that is open for training. Raises DataError where the cache is too small for it."""

    def __init__(self, address: str, index: StreamIndex | None = None, cache_bytes: int = DEFAULT_CACHE_BYTES) -> None:
        self.storage = Storage(address)
        self.index = read_index(self.storage) if index is None else index
        self.cache_bytes, self._folder = cache_bytes, cache_folder() / "streams"
        self._checked: set[str] = set()
        largest = sorted((shard.size for shard in self.index.shards), reverse=True)
        needed = sum(largest[: 2 * TOGETHER])  # what is read, and what is fetched meanwhile
        if self.storage.folder is None and needed > cache_bytes:
            raise DataError(
                f"A cache of {size(cache_bytes)} is too small for this corpus: {2 * TOGETHER} of its shards take "
                f"{size(needed)}.",
                f"Set corpus.cache_bytes to {needed} or more, or make the corpus again with smaller shards.",
            )

    @property
    def n_tokens(self) -> int:
        return self.index.n_tokens

    def open(self, numbers: Sequence[int], besides: Sequence[int] = ()) -> list[tuple[np.ndarray, np.ndarray]]:
        """(tokens, offsets) of these shards, brought here first where they are not. besides: shards in use, which stay.

        Raises DataError for a shard that cannot be had, or is not the recorded one.
        """
        shards = [self.index.shards[number] for number in numbers]
        kept = {file.sha256 for number in (*numbers, *besides) for file in _files(self.index.shards[number])}
        return [open_arrays(self._path(shard.tokens, kept), self._path(shard.offsets, kept), shard) for shard in shards]

    def _path(self, file: StoredFile, kept: set[str]) -> Path:
        if file.sha256 in self._checked and self.storage.folder is not None:
            return self.storage.folder / file.path
        local = self.storage.local(file)
        if local is not None:
            self._checked.add(file.sha256)
            return local
        path = self._folder / f"{file.sha256}.npy"
        with locked(self._folder / f".{file.sha256[:2]}.lock"):
            if not self._is_there(path, file):
                self._make_room(file.size, kept)
                self.storage.fetch(file, path)
                self._checked.add(file.sha256)
            with suppress(OSError):
                path.touch()  # what was used last is removed last
        return path

    def _is_there(self, path: Path, file: StoredFile) -> bool:
        if not path.is_file():
            return False
        if file.sha256 in self._checked:
            return True
        try:
            check(path, file)
        except DataError:
            path.unlink(missing_ok=True)  # damaged since; it is fetched again
            return False
        self._checked.add(file.sha256)
        return True

    def _make_room(self, needed: int, kept: set[str]) -> None:
        """Removes what was used least recently; another process that has it open goes on reading it."""
        found = []
        for path in self._folder.glob("*.npy"):
            with suppress(OSError):
                state = path.stat()
                found.append((state.st_mtime_ns, state.st_size, path))
        total = needed + sum(one for _, one, _ in found)
        for _, one, path in sorted(found):
            if total <= self.cache_bytes:
                return
            if path.stem not in kept:
                with suppress(OSError):
                    path.unlink()
                total -= one


def _files(shard: StreamShard) -> tuple[StoredFile, StoredFile]:
    return shard.tokens, shard.offsets
