"""Checkpoints that every process writes its own part of, through torch.distributed.checkpoint, in safetensors files.

They are as atomic as those of one process: the parts are written into a temporary folder, which the first process
renames when all are done. Each tensor is stored under its whole name with its place in the whole, so any number of
processes can read it. They are written while training waits: in the background, the processes would have to meet in
another order than those that train.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import CheckpointException, HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.tensor import DTensor

from athanor.base.errors import AthanorError
from athanor.base.files import atomic_folder, sha256_file
from athanor.training.checkpoints import (
    CheckpointWriter,
    Retention,
    announce,
    checkpoint_path,
    is_whole,
    not_written,
    remove_others,
    say_missed,
    write_numbers,
)
from athanor.training.parallel import Group


class ShardedWriter(CheckpointWriter):
    """Writes checkpoints that all processes have parts of, at once."""

    def __init__(self, folder: Path, retention: Retention, missed: Callable[[], None], group: Group) -> None:
        super().__init__(folder, retention, missed)
        self.group = group

    def announce(self, tensors: Mapping[str, Tensor]) -> None:
        local = [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors.values()]
        total = self.group.sums([float(sum(tensor.nbytes for tensor in local))])[0]
        if self.group.is_first:
            announce(self.folder, self.retention, int(total))

    def save(
        self, step: int, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any], flush: Callable[[], None]
    ) -> None:
        try:
            self._write_part(step, tensors, numbers, flush, self.retention)
        except (AthanorError, OSError) as error:
            self._missed()
            say_missed(step, error)

    def save_now(
        self,
        step: int,
        tensors: Mapping[str, Tensor],
        numbers: Mapping[str, Any],
        flush: Callable[[], None],
        retention: Retention | None = None,
    ) -> None:
        try:
            self._write_part(step, tensors, numbers, flush, retention or self.retention)
        except (AthanorError, OSError) as error:
            self._missed()
            raise not_written(self.folder, step, error) from error

    def _write_part(
        self,
        step: int,
        tensors: Mapping[str, Tensor],
        numbers: Mapping[str, Any],
        flush: Callable[[], None],
        retention: Retention,
    ) -> None:
        with self.group.all_or_none():
            flush()
        save_sharded(self.folder, step, tensors, numbers, retention, self.group)


def save_sharded(
    folder: Path, step: int, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any], keep: Retention, group: Group
) -> None:
    """Writes `folder/step-N`, unless it is there and whole, and removes what `keep` does not.

    tensors: DTensors that all processes share, whole tensors that only this process has, or all have alike. Raises
    AthanorError or OSError on every process where one could not write.
    """
    path = checkpoint_path(folder, step)
    if not group.agree(int(group.is_first and is_whole(path))):
        parts = path.with_name(f".{path.name}.parts.partial")
        with group.all_or_none():
            if group.is_first:
                shutil.rmtree(parts, ignore_errors=True)
                parts.mkdir(parents=True)
        try:
            digests = _write(parts, tensors, group)
            with group.all_or_none():
                if group.is_first:
                    with atomic_folder(path) as temporary:
                        for name in digests:
                            (parts / name).rename(temporary / name)
                        write_numbers(temporary, step, numbers, digests)
        finally:
            if group.is_first:
                shutil.rmtree(parts, ignore_errors=True)
    with group.all_or_none():
        if group.is_first:
            remove_others(folder, step, keep)


def _write(folder: Path, tensors: Mapping[str, Tensor], group: Group) -> dict[str, str]:
    """Writes this process's part; returns the hashes of all files."""
    mine: dict[str, str] = {}
    with _plain_errors():  # torch raises on every process
        dcp.save(dict(tensors), storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))
    with group.all_or_none():
        mine = {file.name: sha256_file(file) for file in folder.glob(f"shard-{group.rank + 1:05d}-*")}
    digests: list[Any] = [None] * group.size
    torch.distributed.all_gather_object(digests, mine)
    return {name: digest for part in digests for name, digest in part.items()}


def load_sharded(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Fills the tensors, of which each process gives its own; reads only what they need, from either kind of
    checkpoint. Raises ValueError where one is missing or of another shape.
    """
    with _plain_errors():
        dcp.load(dict(tensors), storage_reader=HuggingFaceStorageReader(str(path)))


def read_sharded(path: Path) -> dict[str, Tensor]:
    """All tensors, whole; in one process."""
    reader = HuggingFaceStorageReader(str(path))
    about = reader.read_metadata().state_dict_metadata
    tensors = {
        name: torch.empty(kind.size, dtype=kind.properties.dtype)
        for name, kind in about.items()
        if isinstance(kind, TensorStorageMetadata)
    }
    with _plain_errors():
        dcp.load(tensors, storage_reader=reader, no_dist=True)
    return tensors


class _plain_errors:  # noqa: N801, used like a function
    """Brings out the error that torch packs, with those of all processes, into an exception of its own."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, CheckpointException):
            first = next(iter(error.failures.values()))[0]
            raise first if isinstance(first, OSError) else ValueError(str(first)) from None
