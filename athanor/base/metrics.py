"""What a stage logs while it works: JSON lines that survive a crash, and the same for TensorBoard."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from athanor.base.errors import DiskFullError
from athanor.base.files import FULL, explain_disk_errors, write_bytes
from athanor.base.progress import say


class MetricsLog:
    """`metrics.jsonl` (what the run computed, the same each time) and `timing.jsonl` (how fast), a line a step, and
    TensorBoard events of both. Lines after `step`, written before a crash by a process that got further, are
    dropped. On a full disk lines wait until there is room again; TensorBoard's events end.
    """

    def __init__(self, folder: Path, tensorboard: Path | None, step: int = 0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._files = [_Lines(folder / name, step) for name in ("metrics.jsonl", "timing.jsonl")]
        self._events = None if tensorboard is None else _Events(tensorboard)

    def write(self, step: int, metrics: Mapping[str, float], timing: Mapping[str, float] | None = None) -> None:
        for file, values in zip(self._files, (metrics, timing), strict=True):
            if values:
                file.write(json.dumps({"step": step, **values}, sort_keys=True) + "\n")
        self._to_events(lambda events: events.write(step, {**metrics, **(timing or {})}))

    def show(self, step: int, texts: Mapping[str, str]) -> None:
        """Texts by name, for TensorBoard alone."""
        if self._events is not None and texts:
            self._to_events(lambda events: events.write_texts(step, texts))

    def _to_events(self, write: Callable[[_Events], None]) -> None:
        if self._events is None:
            return
        try:
            write(self._events)
        except OSError as error:
            say(f"TensorBoard is shown no more of this training ({error.strerror}).")
            self._events = None

    def sync(self) -> None:
        """Brings all lines to the disk; before a checkpoint, so that none is missing after a power cut. Raises
        DiskFullError when some have to wait.
        """
        for file in self._files:
            file.sync()

    def close(self) -> None:
        for file in self._files:
            file.close()
        if self._events is not None:
            with suppress(OSError):
                self._events.close()


class NoLog:
    """Where nothing is to be logged: in a process whose metrics another one writes."""

    def write(self, step: int, metrics: Mapping[str, float], timing: Mapping[str, float] | None = None) -> None:
        pass

    def show(self, step: int, texts: Mapping[str, str]) -> None:
        pass

    def sync(self) -> None:
        pass

    def close(self) -> None:
        pass


class _Events:
    """A TensorBoard event file. Its own writer works in a thread, where a full disk cannot be told to anyone."""

    def __init__(self, folder: Path) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        folder.mkdir(parents=True, exist_ok=True)
        self._writer = RecordWriter(open(folder / f"events.out.tfevents.{time.time_ns()}", "wb"))  # noqa: SIM115
        self._writer.write(Event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString())

    def write(self, step: int, values: Mapping[str, float]) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        self.add(step, Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in values.items()]))

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.plugins.text.metadata import create_summary_metadata
        from tensorboard.util.tensor_util import make_tensor_proto

        kind = create_summary_metadata(display_name=None, description=None)
        values = [
            Summary.Value(tag=name, metadata=kind, tensor=make_tensor_proto([text])) for name, text in texts.items()
        ]
        self.add(step, Summary(value=values))

    def add(self, step: int, summary: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        self._writer.write(Event(wall_time=time.time(), step=step, summary=summary).SerializeToString())
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def note_hyperparameters(folder: Path, values: Mapping[str, Any]) -> None:
    """Writes the settings of a run for TensorBoard's table of hyper-parameters; once a folder. values may hold tables;
    what is null is left out.
    """
    if folder.is_dir() and any(folder.iterdir()):
        return
    from tensorboard.plugins.hparams.summary_v2 import hparams_pb

    events = _Events(folder)
    events.add(0, hparams_pb(_flat(values), trial_id=folder.as_posix()))
    events.close()


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str | float | bool]:
    found: dict[str, str | float | bool] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{key}.")
        elif value is not None:
            found[f"{prefix}{key}"] = value if isinstance(value, str | int | float) else json.dumps(value)
    return found


class _Lines:
    """A file that lines are added to, behind those up to `step`. What does not fit on the disk waits in memory."""

    def __init__(self, path: Path, step: int) -> None:
        if path.exists():
            data = path.read_bytes()
            if (end := _end_of_step(data, step)) < len(data):
                write_bytes(path, data[:end])
        self._path, self._waiting = path, b""
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115, for as long as the log is

    def write(self, line: str) -> None:
        self._waiting += line.encode()
        try:
            self._flush()
        except OSError as error:
            if error.errno not in FULL:
                raise

    def _flush(self) -> None:
        while self._waiting:
            self._waiting = self._waiting[self._file.write(self._waiting) or 0 :]

    def sync(self) -> None:
        with explain_disk_errors(self._path, self._path):
            self._flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        with suppress(DiskFullError):  # lines without a checkpoint, which a resumed training writes again
            self.sync()
        self._file.close()


def _end_of_step(data: bytes, step: int) -> int:
    """How many bytes of a log the whole lines up to `step` are."""
    end = 0
    for line in data.split(b"\n")[:-1]:
        try:
            if json.loads(line)["step"] > step:
                break
        except (ValueError, KeyError, TypeError):
            break
        end += len(line) + 1
    return end
