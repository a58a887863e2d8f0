"""The metadata of a GGUF file, asked for one by one and checked as the keys of a `config.json` are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from athanor.base.errors import ModelError
from athanor.models.families.keys import Keys


class _Shaped(Protocol):
    @property
    def shape(self) -> tuple[int, ...]: ...


class File(Protocol):
    """A GGUF file, or what will become one."""

    @property
    def path(self) -> Path: ...
    @property
    def metadata(self) -> Mapping[str, Any]: ...
    @property
    def tensors(self) -> Mapping[str, _Shaped]: ...
    def read(self, name: str) -> Tensor: ...


class Header(Keys):
    """Keys without the architecture's name, which stands in front of each in the file."""

    def __init__(self, file: File) -> None:
        name = file.metadata.get("general.architecture")
        super().__init__(file.metadata, str(file.path), name if isinstance(name, str) else "")
        self._file = file

    def take(self, name: str, default: Any = None, *, required: bool = False) -> Any:
        value = self.settings.get(f"{self.architecture}.{name}")
        if value is None and required:
            raise ModelError(f"{self.place} lacks {self.architecture}.{name}.")
        return default if value is None else value

    def decimal(self, name: str, default: float | None = None) -> float:
        """The number that was rounded to fp32 when the file was written; required unless there is a default."""
        if default is None:
            self.take(name, required=True)
        return float(f"{self.number(name, default or 0.0):.7g}")

    def has(self, tensor: str) -> bool:
        return tensor in self._file.tensors

    def tensor(self, name: str) -> Tensor:
        return self._file.read(name)

    @property
    def vocabulary(self) -> int:
        """Rows of the table of tokens."""
        if not self.has("token_embd.weight"):
            raise ModelError(f"{self.place} lacks the tensor token_embd.weight.")
        return self._file.tensors["token_embd.weight"].shape[0]
