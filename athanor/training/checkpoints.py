"""The trainer's whole state on disk: tensors in safetensors files, numbers in a JSON file that also holds the hashes of
all.

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

SCHEMA_VERSION = 3
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
    """One that is whole. path: its folder."""

    path: Path
    numbers: dict[str, Any]

    def tensors(self) -> dict[str, Tensor]:
        """All of them, however many processes wrote them."""
        if (self.path / _TENSORS).exists():
            return load_file(self.path / _TENSORS)
        from athanor.training.sharded_checkpoints import read_sharded

        return read_sharded(self.path)


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
    path = checkpoint_path(folder, step)
    if not is_whole(path):  # replacing a folder has an instant without it
        with atomic_folder(path) as temporary:
            write_tensors(temporary / _TENSORS, tensors)
            write_numbers(temporary, step, numbers, {_TENSORS: sha256_file(temporary / _TENSORS)})
    remove_others(folder, step, retention)


def checkpoint_path(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}"


def is_whole(path: Path) -> bool:
    return path.exists() and _flaw(path) is None


def write_numbers(folder: Path, step: int, numbers: Mapping[str, Any], digests: Mapping[str, str]) -> None:
    """Makes a checkpoint of the files of tensors in `folder`. digests: the hash of each."""
    record = {**numbers, "schema_version": SCHEMA_VERSION, "step": step, "sha256": dict(digests)}
    write_json(folder / _NUMBERS, {**record, "checksum": fingerprint(record)})


def remove_others(folder: Path, step: int, retention: Retention) -> None:
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


def remove_damaged(folder: Path, step: int) -> None:
    """What lies beyond `step`, the newest that is whole: else it would count among those that are kept."""
    for number, path in _present(folder).items():
        if number > step:
            shutil.rmtree(path)


def find_checkpoint(folder: Path) -> tuple[Checkpoint | None, int]:
    """The newest checkpoint that is whole, or None where there is none; and how many newer ones are not.

    Raises RunError for one that a newer version made.
    """
    present = _present(folder)
    for unusable, step in enumerate(reversed(present)):
        flaw = _flaw(present[step])
        if flaw is None:
            return checkpoint_of(folder, step), unusable
        last = unusable == len(present) - 1
        say(
            f"Checkpoint {present[step]} {flaw}; " + ("training starts over." if last else "the one before it is used.")
        )
    return None, len(present)


def is_checkpoint(path: Path) -> bool:
    """Whether this is the folder of one, whole or not."""
    return bool(re.fullmatch(r"step-\d{8,}", path.name)) and path.is_dir()


def checkpoint_at(path: Path) -> Checkpoint:
    """The one in this folder. Raises RunError where it is not whole."""
    if (flaw := _flaw(path)) is not None:
        others = [other.name for step, other in _present(path.parent).items() if other.name != path.name]
        raise RunError(f"The checkpoint {path} {flaw}.", f"There are also: {', '.join(others) or 'none'}.")
    return checkpoint_of(path.parent, _step(path))


def checkpoint_of(folder: Path, step: int) -> Checkpoint:
    """The one of this step, which was found whole."""
    path = checkpoint_path(folder, step)
    return Checkpoint(path, read_json(path / _NUMBERS))


def _flaw(path: Path) -> str | None:
    """What is wrong with a checkpoint, after "it"; None for a whole one."""
    try:
        numbers = read_json(path / _NUMBERS)
        version = int(numbers["schema_version"])
        if version < SCHEMA_VERSION:
            return "is of an older version of Athanor"
        if version == SCHEMA_VERSION:
            checksum, digests = numbers.pop("checksum"), numbers["sha256"]
            intact = checksum == fingerprint(numbers) and bool(digests)
            intact = intact and all(sha256_file(path / name) == digest for name, digest in digests.items())
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


def announce(folder: Path, retention: Retention, n_bytes: int) -> None:
    """Says what checkpoints of so many bytes will take of the disk, and whether that much is free."""
    needed = retention.bound * n_bytes
    say(f"Checkpoints of {size(n_bytes)}: at most {retention.bound} on the disk, {size(needed)}.")
    free = shutil.disk_usage(folder.parent).free
    if free < needed:
        say(f"Only {size(free)} are free there: when the disk is full, the checkpoints written before are kept.")


def say_missed(step: int, error: BaseException) -> None:
    say(f"The checkpoint of step {step} could not be written, training goes on without it: {_message(error)}")


def not_written(folder: Path, step: int, error: BaseException) -> RunError:
    kept = next(reversed(_present(folder)), None)
    stands = "there is none before it" if kept is None else f"that of step {kept} is kept"
    return RunError(
        f"The checkpoint of step {step} could not be written; {stands}. {_message(error)}",
        "Free some space and run the same command again; it continues.",
    )


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
        announce(self.folder, self.retention, sum(tensor.nbytes for tensor in tensors.values()))

    def save(
        self, step: int, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any], flush: Callable[[], None]
    ) -> None:
        """In the background where memory allows. flush: brings to the disk what the checkpoint relies on."""
        self.join()
        try:
            flush()
        except (AthanorError, OSError) as error:
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
            raise not_written(self.folder, step, error) from error

    def check(self) -> None:
        """What has become of the thread, once it has ended."""
        if self._thread is not None and not self._thread.is_alive():
            self._thread = None
        if self._thread is None and self._failure is not None:
            (step, error), self._failure = self._failure, None
            if not isinstance(error, AthanorError | OSError):
                raise error
            self._missed()
            say_missed(step, error)

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
