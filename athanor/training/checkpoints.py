"""The trainer's whole state on disk: tensors in one safetensors file, numbers in one JSON file that also holds the hash
of both.

A checkpoint appears by a rename, so it is whole or not there. Should the newest have been damaged since, the one before
it is used, and said so. While training goes on they are written by a thread from a copy in memory; one that cannot be
written costs nothing but itself.
"""

from __future__ import annotations

import re
import shutil
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from athanor.base.errors import AthanorError, RunError
from athanor.base.files import atomic_folder, fingerprint, read_json, sha256_file, write_json
from athanor.base.machine import available_memory
from athanor.base.progress import say, size
from athanor.models.folder import write_tensors

SCHEMA_VERSION = 2
_TENSORS, _NUMBERS = "state.safetensors", "state.json"
_COPIES = 3  # of the state must fit into free memory for it to be written in the background


@dataclass(frozen=True)
class Retention:
    """Which checkpoints are kept: the newest `last`; the one with the lowest held-out metric `best`, if named; and of
    those whose step is a multiple of `every`, if given, the newest `most`.
    """

    last: int = 2
    best: str = ""
    every: int = 0
    most: int = 10

    def __post_init__(self) -> None:
        if self.last < 1 or self.every < 0 or self.most < 1:
            raise ValueError("at least the last checkpoint is kept, and every and most are counts")

    @property
    def bound(self) -> int:
        """The most checkpoints on the disk at a time, the one being written included."""
        return self.last + bool(self.best) + (self.most if self.every else 0) + 1

    def kept(self, scores: Mapping[int, Mapping[str, float]]) -> set[int]:
        """scores: held-out metrics by step, empty for a checkpoint at which nothing was measured."""
        steps = sorted(scores)
        kept = set(steps[-self.last :])
        if self.every:
            kept |= set([step for step in steps if step % self.every == 0][-self.most :])
        measured = [step for step in steps if self.best in scores[step]]
        return kept | ({min(measured, key=lambda step: (scores[step][self.best], step))} if measured else set())


@dataclass(frozen=True)
class Checkpoint:
    tensors: dict[str, Tensor]
    numbers: dict[str, Any]


def save_checkpoint(
    folder: Path,
    step: int,
    tensors: Mapping[str, Tensor],
    numbers: Mapping[str, Any],
    retention: Retention = Retention(),
) -> None:
    """Writes `folder/step-N`, unless it is there and whole, and removes what `retention` does not keep.

    numbers["held_out"], if given, are the metrics that the best one is chosen by.
    """
    path = folder / f"step-{step:08d}"
    if not path.exists() or _flaw(path) is not None:  # replacing a folder has an instant without it
        with atomic_folder(path) as temporary:
            write_tensors(temporary / _TENSORS, tensors)
            digest = sha256_file(temporary / _TENSORS)
            record = {**numbers, "schema_version": SCHEMA_VERSION, "step": step, "sha256": digest}
            write_json(temporary / _NUMBERS, {**record, "checksum": fingerprint(record)})
    _remove_others(folder, step, retention)


def _remove_others(folder: Path, step: int, retention: Retention) -> None:
    """What is not kept; what lies beyond `step`, damaged, or nobody would have come back here; and what a killed
    process left half-written.
    """
    present = _present(folder)
    kept = retention.kept({number: _held_out(path) for number, path in present.items() if number <= step})
    for number, path in present.items():
        if number not in kept:
            shutil.rmtree(path)
    for path in folder.glob(".step-*.partial"):
        shutil.rmtree(path)


def load_checkpoint(folder: Path) -> tuple[Checkpoint | None, int]:
    """The newest checkpoint that is whole, or None where there is none; and how many newer ones are not.

    Raises RunError for one that a newer version made.
    """
    present = _present(folder)
    for unusable, step in enumerate(reversed(present)):
        flaw = _flaw(present[step])
        if flaw is None:
            return Checkpoint(load_file(present[step] / _TENSORS), read_json(present[step] / _NUMBERS)), unusable
        last = unusable == len(present) - 1
        say(
            f"Checkpoint {present[step]} {flaw}; " + ("training starts over." if last else "the one before it is used.")
        )
    return None, len(present)


def _flaw(path: Path) -> str | None:
    """What is wrong with a checkpoint, after "it"; None for a whole one."""
    try:
        numbers = read_json(path / _NUMBERS)
        version = int(numbers["schema_version"])
        if version < SCHEMA_VERSION:
            return "is of an older version of Athanor"
        if version == SCHEMA_VERSION:
            checksum = numbers.pop("checksum")
            intact = checksum == fingerprint(numbers) and numbers["sha256"] == sha256_file(path / _TENSORS)
            return None if intact and numbers["step"] == _step(path) else "is damaged"
    except (AthanorError, OSError, KeyError, TypeError, ValueError, AttributeError):
        return "is damaged"
    raise RunError(f"{path} was made by a newer version of Athanor.", "Upgrade athanor-lm.")


def _held_out(path: Path) -> Mapping[str, float]:
    try:
        found = read_json(path / _NUMBERS).get("held_out", {})
    except (AthanorError, AttributeError):
        return {}
    return found if isinstance(found, dict) else {}


def _present(folder: Path) -> dict[int, Path]:
    """The checkpoints by step, in order."""
    if not folder.is_dir():
        return {}
    found = [path for path in folder.iterdir() if re.fullmatch(r"step-\d{8,}", path.name)]
    return {_step(path): path for path in sorted(found, key=_step)}


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


class CheckpointWriter:
    """Writes a stage's checkpoints, one at a time. missed: called for each that could not be written.

    What a full or failing disk does to one is said, and training goes on with those before it; any other error of the
    thread is raised by the next `check`.
    """

    def __init__(self, folder: Path, retention: Retention, missed: Callable[[], None]) -> None:
        self.folder, self.retention, self._missed = folder, retention, missed
        self._thread: threading.Thread | None = None
        self._failure: tuple[int, BaseException] | None = None

    def announce(self, tensors: Mapping[str, Tensor]) -> None:
        """Says what the checkpoints will take of the disk, and whether that much is free."""
        one = sum(tensor.nbytes for tensor in tensors.values())
        needed = self.retention.bound * one
        say(f"Checkpoints of {size(one)}: at most {self.retention.bound} on the disk, {size(needed)}.")
        free = shutil.disk_usage(self.folder.parent).free
        if free < needed:
            say(f"Only {size(free)} are free there: when the disk is full, the checkpoints written before are kept.")

    def save(
        self, step: int, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any], flush: Callable[[], None]
    ) -> None:
        """In the background where memory allows. flush: brings to the disk what the checkpoint relies on."""
        self.join()
        try:
            flush()
        except AthanorError as error:
            self._failure = step, error
        else:
            if available_memory() < _COPIES * sum(tensor.nbytes for tensor in tensors.values()):
                self._write(step, tensors, numbers)
            else:
                copies = {name: tensor.to("cpu", copy=True) for name, tensor in tensors.items()}
                self._thread = threading.Thread(target=self._write, args=(step, copies, numbers), name="checkpoint")
                self._thread.start()
        self.check()

    def save_now(
        self,
        step: int,
        tensors: Mapping[str, Tensor],
        numbers: Mapping[str, Any],
        flush: Callable[[], None],
        retention: Retention | None = None,
    ) -> None:
        """Returns when it is on the disk; raises AthanorError when it cannot be, naming the one that is kept."""
        self.join()
        try:
            flush()
            save_checkpoint(self.folder, step, tensors, numbers, retention or self.retention)
        except (AthanorError, OSError) as error:
            self._missed()
            kept = next(reversed(_present(self.folder)), None)
            stands = "there is none before it" if kept is None else f"that of step {kept} is kept"
            raise RunError(
                f"The checkpoint of step {step} could not be written; {stands}. {_message(error)}",
                "Free some space and run the same command again; it continues.",
            ) from error

    def check(self) -> None:
        """What has become of the thread, once it has ended."""
        if self._thread is not None and not self._thread.is_alive():
            self._thread = None
        if self._thread is None and self._failure is not None:
            (step, error), self._failure = self._failure, None
            if not isinstance(error, AthanorError | OSError):
                raise error
            self._missed()
            say(f"The checkpoint of step {step} could not be written, training goes on without it: {_message(error)}")

    def join(self) -> None:
        """Waits for what is being written, then does what `check` does."""
        if self._thread is not None:
            self._thread.join()
        self.check()

    def _write(self, step: int, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        try:
            save_checkpoint(self.folder, step, tensors, numbers, self.retention)
        except BaseException as error:  # whatever it is, it must not end with the thread
            self._failure = step, error


def _message(error: BaseException) -> str:
    return error.message if isinstance(error, AthanorError) else str(error)
