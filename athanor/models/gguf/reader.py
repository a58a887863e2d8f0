"""Reading a GGUF file without trusting it: every count, length, type and offset is checked against the bytes that are
really there before it is used, so that a file that is cut short or lies gives a sentence, never a huge allocation.

The file is memory-mapped; tensors are unpacked when they are asked for.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from athanor.base.errors import ModelError
from athanor.models.gguf.quants import FORMATS, Format, unpack

_VERSIONS = (2, 3)
_MOST_DIMENSIONS, _DEEPEST_ARRAY, _LONGEST_NAME, _LARGEST_ALIGNMENT = 4, 2, 256, 1 << 16
_SCALARS: dict[int, str] = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRUCTS = {code: struct.Struct(f"<{code}") for code in _SCALARS.values()}
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True)
class TensorInfo:
    """shape: in torch's order. start, size: bytes within the file."""

    shape: tuple[int, ...]
    format: Format
    start: int
    size: int


class _Cursor:
    """Bytes taken one after the other; never more than there are."""

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self.data, self.path, self.at, self.end = data, path, 0, len(data)

    def refuse(self, what: str) -> ModelError:
        return ModelError(f"{self.path} is not a sound GGUF file: {what}.", "Fetch it again; it may be cut short.")

    def take(self, count: int) -> bytes:
        if count > self.end - self.at:
            raise self.refuse(f"at byte {self.at} it promises {count} more, and {self.end - self.at} are left")
        self.at += count
        return bytes(self.data[self.at - count : self.at])

    def number(self, code: str) -> Any:
        form = _STRUCTS[code]
        return form.unpack(self.take(form.size))[0]

    def count(self, what: str, least_size: int) -> int:
        """A number of things that take at least `least_size` bytes each."""
        count: int = self.number("Q")
        if count * least_size > self.end - self.at:
            raise self.refuse(f"{count} {what} do not fit into the {self.end - self.at} bytes that are left")
        return count

    def text(self, longest: int | None = None) -> str:
        length: int = self.number("Q")
        if longest is not None and length > longest:
            raise self.refuse(f"a name of {length} bytes")
        # Tokens may be parts of characters; what is no UTF-8 survives the way there and back.
        return self.take(length).decode("utf-8", "surrogateescape")

    def value(self, kind: int, depth: int = 0) -> Any:
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _STRING:
            return self.text()
        if kind == _ARRAY and depth < _DEEPEST_ARRAY:
            inner: int = self.number("I")
            if code := _SCALARS.get(inner):
                size = _STRUCTS[code].size
                data = self.take(self.count("numbers", size) * size)
                return np.frombuffer(data, dtype=np.dtype(f"<{code}")).tolist()
            count = self.count("values", 8)
            return [self.value(inner, depth + 1) for _ in range(count)]
        raise self.refuse(f"a value of the unknown kind {kind}")


class GgufFile:
    """metadata: by key. tensors: what is known of each, by name; `read` unpacks one."""

    def __init__(self, path: Path | str) -> None:
        """Raises ModelError for a file that is missing or not sound."""
        self.path = Path(path)
        try:
            with open(self.path, "rb") as file:
                self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except FileNotFoundError:
            raise ModelError(f"{self.path} does not exist.") from None
        except (OSError, ValueError) as error:  # an empty file cannot be mapped
            raise ModelError(f"{self.path} cannot be read ({error}).", "Fetch it again.") from None
        cursor = _Cursor(self._data, self.path)
        if cursor.take(4) != b"GGUF":
            raise cursor.refuse("it does not begin with GGUF")
        version = cursor.number("I")
        if version not in _VERSIONS:
            raise ModelError(f"{self.path} has GGUF version {version}.", "Known are versions 2 and 3.")
        n_tensors, n_values = cursor.count("tensors", 24), cursor.count("values", 13)
        self.metadata: dict[str, Any] = {}
        for _ in range(n_values):
            key = cursor.text(_LONGEST_NAME * 256)
            self.metadata[key] = cursor.value(cursor.number("I"))
        self.tensors = dict(self._tensors(cursor, n_tensors))

    def _tensors(self, cursor: _Cursor, count: int) -> Iterator[tuple[str, TensorInfo]]:
        alignment = self.metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 0 < alignment <= _LARGEST_ALIGNMENT or alignment & (alignment - 1):
            raise cursor.refuse(f"an alignment of {alignment!r}")
        found: dict[str, tuple[tuple[int, ...], Format, int]] = {}
        for _ in range(count):
            name = cursor.text(_LONGEST_NAME)
            if name in found:
                raise cursor.refuse(f"two tensors are named {name}")
            dimensions = cursor.number("I")
            if not 0 < dimensions <= _MOST_DIMENSIONS:
                raise cursor.refuse(f"{name} has {dimensions} dimensions")
            shape = tuple(reversed([cursor.number("Q") for _ in range(dimensions)]))
            kind, offset = cursor.number("I"), cursor.number("Q")
            if kind not in FORMATS:
                known = ", ".join(form.name for form in FORMATS.values())
                raise ModelError(f"{self.path}: {name} has the number format {kind}.", f"Read are: {known}.")
            found[name] = shape, FORMATS[kind], offset
        begin = -(-cursor.at // alignment) * alignment
        free = cursor.end - begin
        for name, (shape, form, offset) in found.items():
            numbers = 1
            for side in shape:
                numbers *= side
            if not 0 < numbers <= cursor.end * 8 or shape[-1] % form.numbers:
                raise cursor.refuse(f"{name} of {form.name} has the shape {shape}")
            size = numbers // form.numbers * form.size
            free -= size  # also bounds what all tensors together take, should they share bytes
            if offset % alignment or begin + offset + size > cursor.end or free < 0:
                raise cursor.refuse(f"{name} does not lie within it")
            yield name, TensorInfo(shape, form, begin + offset, size)

    def read(self, name: str) -> Tensor:
        """fp32, or the file's own type for plain formats. Raises ModelError for an unknown name."""
        if name not in self.tensors:
            raise ModelError(f"{self.path} lacks the tensor {name}.")
        info = self.tensors[name]
        data = np.frombuffer(self._data, dtype=np.uint8, count=info.size, offset=info.start)
        tensor = unpack(data, info.format, info.shape)
        self._let_go(info)
        return tensor

    def read_rows(self, name: str) -> Tensor:
        """(rows, bytes of a row) uint8, as they are."""
        info = self.tensors[name]
        data = bytearray(self._data[info.start : info.start + info.size])
        return torch.frombuffer(data, dtype=torch.uint8).view(
            -1, info.shape[-1] // info.format.numbers * info.format.size
        )

    def _let_go(self, info: TensorInfo) -> None:
        """The pages of a tensor that has been read need no longer count as this process's memory."""
        if hasattr(mmap, "MADV_DONTNEED"):
            start = info.start - info.start % mmap.PAGESIZE
            self._data.madvise(mmap.MADV_DONTNEED, start, info.start + info.size - start)
