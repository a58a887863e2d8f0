"""Checkpoints that every process writes its own part of, through torch.distributed.checkpoint, in safetensors files.

They are as atomic as those of one process: the parts are written into a temporary folder, which the first process
renames when all are done. Each tensor is stored under its whole name with its place in the whole, so any number of
processes can read it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import CheckpointException, HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from athanor.base.files import atomic_folder, sha256_file
from athanor.training.checkpoints import checkpoint_path, intact_numbers, remove_old, write_numbers
from athanor.training.parallel import Group


def save_sharded(
    folder: Path, step: int, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any], keep: int, group: Group
) -> None:
    """Writes `folder/step-N`, unless it is there and whole, and removes all but the newest `keep`.

    tensors: DTensors that all processes share, and whole tensors that only this process has.
    """
    path = checkpoint_path(folder, step)
    if not group.agree(int(path.exists() and intact_numbers(path) is not None) if group.is_first else 0):
        if group.is_first:
            with atomic_folder(path) as temporary:
                write_numbers(temporary, step, numbers, _write(temporary, tensors, group))
        else:
            _write(path.with_name(f".{path.name}.partial"), tensors, group)
    if group.is_first:
        remove_old(folder, keep)
    group.barrier()


def _write(folder: Path, tensors: Mapping[str, Tensor], group: Group) -> dict[str, str]:
    """Writes this process's part; returns the hashes of all files."""
    group.barrier()  # the folder is there
    with _plain_errors():
        dcp.save(dict(tensors), storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))
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
