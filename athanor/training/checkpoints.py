"""The trainer's whole state on disk: tensors in one safetensors file, numbers in one JSON file that also holds its
hash.

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

SCHEMA_VERSION = 1
_TENSORS, _NUMBERS = "state.safetensors", "state.json"


def save_checkpoint(
    folder: Path, step: int, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any], keep: int = 2
) -> None:
    """Writes `folder/step-N`, unless it is there and whole, and removes all but the newest `keep`."""
    path = folder / f"step-{step:08d}"
    if not path.exists() or _intact_numbers(path) is None:  # replacing a folder has an instant without it
        with atomic_folder(path) as temporary:
            write_tensors(temporary / _TENSORS, tensors)
            digest = sha256_file(temporary / _TENSORS)
            write_json(
                temporary / _NUMBERS, {**numbers, "schema_version": SCHEMA_VERSION, "step": step, "sha256": digest}
            )
    for old in _present(folder)[:-keep]:
        shutil.rmtree(old)


def load_checkpoint(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The newest checkpoint that is whole, or None where there is none at all."""
    present = _present(folder)
    for path in reversed(present):
        numbers = _intact_numbers(path)
        if numbers is not None:
            return load_file(path / _TENSORS), numbers
        say(
            f"Checkpoint {path} is damaged; "
            + ("training starts over." if path == present[0] else "the one before it is used.")
        )
    return None


def _intact_numbers(path: Path) -> dict[str, Any] | None:
    try:
        numbers = read_json(path / _NUMBERS)
        version, digest = numbers["schema_version"], numbers["sha256"]
        newer = version > SCHEMA_VERSION
        intact = sha256_file(path / _TENSORS) == digest
    except (AthanorError, OSError, KeyError, TypeError):
        return None
    if newer:
        raise RunError(f"{path} was made by a newer version of Athanor.", "Upgrade athanor-lm.")
    return numbers if intact else None


def _present(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if re.fullmatch(r"step-\d{8,}", path.name))
