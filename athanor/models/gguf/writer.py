"""Writing a GGUF file (version 3): metadata, a table of the tensors, then their bytes, each made in turn."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from athanor.base.errors import ModelError
from athanor.base.files import atomic_path
from athanor.models.gguf.packing import format_named, largest, pack

_ALIGNMENT, _VERSION = 32, 3
_UINT32, _INT32, _FLOAT32, _BOOL, _STRING, _ARRAY, _UINT64 = 4, 5, 6, 7, 8, 9, 10


@dataclass(frozen=True)
class Entry:
    """A tensor to be written. shape: in torch's order. form: the format's name. make: gives the tensor."""

    name: str
    shape: tuple[int, ...]
    form: str
    make: Callable[[], Tensor]

    @property
    def size(self) -> int:
        """In bytes."""
        numbers = 1
        for side in self.shape:
            numbers *= side
        form = format_named(self.form)[1]
        return numbers // form.numbers * form.size


def write_file(path: Path | str, metadata: Mapping[str, Any], entries: Sequence[Entry]) -> None:
    """metadata: whole numbers, decimals, flags, texts, and lists of one of these.

    Raises ModelError for numbers that a tensor's format cannot hold.
    """
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        file.write(b"GGUF" + struct.pack("<IQQ", _VERSION, len(entries), len(metadata)))
        for key, value in metadata.items():
            file.write(_text(key) + _value(value))
        offset = 0
        for entry in entries:
            sides = entry.shape[::-1]
            file.write(_text(entry.name) + struct.pack(f"<I{len(sides)}Q", len(sides), *sides))
            file.write(struct.pack("<IQ", format_named(entry.form)[0], offset))
            offset += _aligned(entry.size)
        _pad(file)
        for entry in entries:
            data = _packed(entry)
            assert data.nbytes == entry.size
            file.write(data.data)
            _pad(file)


def _packed(entry: Entry) -> np.ndarray:
    tensor = entry.make()
    furthest = max(map(abs, (float(end) for end in torch.aminmax(tensor))))
    if not math.isfinite(furthest):
        raise ModelError(f"{entry.name} has values that are not numbers.", "The model has diverged.")
    if furthest > largest(entry.form):
        raise ModelError(f"{entry.name} holds {furthest:g}, which {entry.form} cannot.", "BF16 and F32 can.")
    return pack(tensor, entry.form)


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _pad(file: BinaryIO) -> None:
    file.write(bytes(-file.tell() % _ALIGNMENT))


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(value: Any) -> bytes:
    if isinstance(value, list | tuple):
        kind = _kind(value[0]) if value else _INT32
        kind = _INT32 if kind == _UINT32 else kind  # llama.cpp looks for lists of signed numbers
        return struct.pack("<IIQ", _ARRAY, kind, len(value)) + b"".join(_bare(one, kind) for one in value)
    kind = _kind(value)
    return struct.pack("<I", kind) + _bare(value, kind)


def _kind(value: Any) -> int:
    match value:
        case bool():
            return _BOOL
        case int():
            return _UINT64 if value >= 1 << 32 else _UINT32 if value >= 0 else _INT32
        case float():
            return _FLOAT32
        case str():
            return _STRING
    raise TypeError(f"GGUF has no value of the kind {type(value).__name__}.")


def _bare(value: Any, kind: int) -> bytes:
    if kind == _STRING:
        return _text(value)
    codes = {_UINT32: "I", _INT32: "i", _FLOAT32: "f", _BOOL: "?", _UINT64: "Q"}
    return struct.pack(f"<{codes[kind]}", value)
