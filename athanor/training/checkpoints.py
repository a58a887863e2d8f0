"""The trainer's whole state on disk: tensors in safetensors files, numbers in one JSON file that also holds their
hashes.

A checkpoint appears by a rename, so it is whole or not there. Should the newest have been damaged since, the one before
it is used, and said so.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from athanor.base.errors import AthanorError, RunError
from athanor.base.files import atomic_folder, read_json, sha256_file, write_json
from athanor.base.progress import say
from athanor.models.folder import write_tensors

SCHEMA_VERSION = 2
_TENSORS, _NUMBERS = "state.safetensors", "state.json"


def save_checkpoint(
    folder: Path, step: int, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any], keep: int = 2
) -> None:
    """Writes `folder/step-N`, unless it is there and whole, and removes all but the newest `keep`."""
    path = checkpoint_path(folder, step)
    if not path.exists() or intact_numbers(path) is None:  # replacing a folder has an instant without it
        with atomic_folder(path) as temporary:
            write_tensors(temporary / _TENSORS, tensors)
            write_numbers(temporary, step, numbers, {_TENSORS: sha256_file(temporary / _TENSORS)})
    remove_old(folder, keep)


def find_checkpoint(folder: Path, step: int | None = None) -> tuple[Path, dict[str, Any]] | None:
    """Path and numbers of the newest checkpoint that is whole, or None where there is none at all.

    step: the one to take, found whole already by another process.
    """
    if step is not None:
        path = checkpoint_path(folder, step)
        return path, read_json(path / _NUMBERS)
    present = _present(folder)
    for path in reversed(present):
        numbers = intact_numbers(path)
        if numbers is not None:
            return path, numbers
        say(
            f"Checkpoint {path} is damaged; "
            + ("training starts over." if path == present[0] else "the one before it is used.")
        )
    return None


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint, however many processes wrote it."""
    if (path / _TENSORS).exists():
        return load_file(path / _TENSORS)
    from athanor.training.sharded_checkpoints import read_sharded

    return read_sharded(path)


def checkpoint_path(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}"


def write_numbers(folder: Path, step: int, numbers: Mapping[str, Any], digests: Mapping[str, str]) -> None:
    """digests: the hash of each file of tensors in the folder."""
    about = {"schema_version": SCHEMA_VERSION, "step": step, "sha256": dict(digests)}
    write_json(folder / _NUMBERS, {**numbers, **about})


def remove_old(folder: Path, keep: int) -> None:
    """Removes all checkpoints but the newest `keep`."""
    for old in _present(folder)[:-keep]:
        shutil.rmtree(old)


def intact_numbers(path: Path) -> dict[str, Any] | None:
    """The numbers of a checkpoint whose files are all what was written; else None."""
    try:
        numbers = read_json(path / _NUMBERS)
        version, digests = numbers["schema_version"], numbers["sha256"]
        newer = version > SCHEMA_VERSION
        intact = digests and all(sha256_file(path / name) == digest for name, digest in digests.items())
    except (AthanorError, OSError, KeyError, TypeError, AttributeError):
        return None
    if newer:
        raise RunError(f"{path} was made by a newer version of Athanor.", "Upgrade athanor-lm.")
    return numbers if intact else None


def _present(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if re.fullmatch(r"step-\d{8,}", path.name))
