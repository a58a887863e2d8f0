"""The run folder: a chain of content-addressed stages that survives being killed at any moment.

`runs/NAME/STAGE/stage.json` says what a stage was made from (settings and the fingerprints of its inputs) and, once it
is finished, what it made (sha256 of each output) and measured. A finished stage with the same fingerprint is skipped, a
half-done one continues, one whose settings changed is set aside and made anew. Everything that depends on the clock
stands in `timing` subtrees and files of their own, so all other bytes can be compared between runs.
"""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from athanor.base.errors import AthanorError, DiskFullError, RunError
from athanor.base.files import fingerprint, read_json, sha256_file, write_json

SCHEMA_VERSION = 1
RUNS = Path("runs")
"""Where runs live, seen from the working folder."""


class Stage:
    """One folder of a run. `fingerprint` identifies what it was made from, `outputs` what it made."""

    def __init__(
        self, folder: Path, name: str, settings: Mapping[str, Any], inputs: Mapping[str, str], version: str
    ) -> None:
        self.folder, self.name = folder, name
        self.settings, self.inputs, self.code_version = dict(settings), dict(inputs), version
        self.fingerprint = fingerprint({"stage": name, "settings": self.settings, "inputs": self.inputs})
        self.record: dict[str, Any] = {}
        self._started: float | None = None
        self._beaten = 0.0

    @property
    def finished(self) -> bool:
        return self.record.get("status") == "finished"

    @property
    def metrics(self) -> dict[str, Any]:
        return self.record["metrics"]

    @property
    def output_fingerprint(self) -> str:
        """Identifies the finished stage's files: what a later stage takes as its input."""
        return fingerprint(self.record["outputs"])

    @property
    def seconds(self) -> float:
        """Active seconds spent on this stage, by this process and by earlier ones."""
        return self._earlier() + (time.monotonic() - self._started if self._started is not None else 0.0)

    def _earlier(self) -> float:
        return float(self.record.get("timing", {}).get("seconds", 0.0))

    @property
    def exactness(self) -> dict[str, Any] | None:
        """What the stage was begun with, as far as bit-exactness goes; None for a stage that has just begun."""
        return self.record.get("timing", {}).get("exactness")

    def note_exactness(self, exactness: Mapping[str, Any]) -> None:
        self.record.setdefault("timing", {})["exactness"] = dict(exactness)
        write_json(self.folder / "stage.json", self.record)

    def beat(self, every: float = 2.0) -> None:
        """Notes the active seconds on disk, at most every `every` seconds, so that a killed process's time counts."""
        now = time.monotonic()
        if self._started is not None and now - self._beaten >= every:
            self._beaten = now
            self._note_seconds()

    def _note_seconds(self) -> None:
        with suppress(DiskFullError):  # it only counts time, and must not hide what matters
            write_json(self.folder / "timing.json", {"seconds": self.seconds})

    def freeze(self, name: str, decide: Callable[[], Any]) -> Any:
        """What `decide` says, decided once: written to `name` before it is used, and read from there ever after."""
        if not (self.folder / name).exists():
            write_json(self.folder / name, decide())
        return self.read(name)

    def read(self, name: str) -> dict[str, Any]:
        """A JSON object among the stage's files. Raises RunError where it is missing or not what the stage wrote."""
        path, output = self.folder / name, self.record.get("outputs", {}).get(name)
        try:
            if output is None or sha256_file(path) == output["sha256"]:
                return _read_record(path)
        except (AthanorError, OSError):
            pass
        raise damaged(path)

    @contextmanager
    def working(self) -> Iterator[None]:
        """Counts the time inside as active."""
        self._started = time.monotonic()
        try:
            yield
        finally:
            if not self.finished:
                self.record.setdefault("timing", {})["seconds"] = self.seconds
                self._started = None
                self._note_seconds()

    def begin(self) -> None:
        """Finds out where the stage stands; a folder made from other settings is set aside first."""
        path = self.folder / "stage.json"
        if path.exists():
            record = _read_stage(path)
            if record["fingerprint"] == self.fingerprint and not (
                record["status"] == "finished" and not self._intact(record)
            ):
                self.record = record
                if not self.finished:
                    self.record.setdefault("timing", {}).update(_read_seconds(self.folder / "timing.json"))
                return
            os.replace(self.folder, _unused(self.folder.with_name(f"{self.folder.name}.replaced")))
        elif self.folder.is_dir() and any(not file.name.endswith(".partial") for file in self.folder.iterdir()):
            raise RunError(
                f"{self.folder} has files but no stage.json.",
                "A stage of this run is made again once it is removed; move anything else away.",
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        self.record = {
            "schema_version": SCHEMA_VERSION,
            "name": self.name,
            "status": "running",
            "fingerprint": self.fingerprint,
            "settings": self.settings,
            "inputs": self.inputs,
            "code_version": self.code_version,
        }
        write_json(path, self.record)

    def _intact(self, record: Mapping[str, Any]) -> bool:
        """Outputs are all there with their sizes; the hashes are trusted, reading gigabytes at each start would not
        be.
        """
        return all(
            (self.folder / name).is_file() and (self.folder / name).stat().st_size == output["bytes"]
            for name, output in record["outputs"].items()
        )

    def finish(
        self, metrics: Mapping[str, Any], outputs: Iterable[str], timing: Mapping[str, Any] | None = None
    ) -> None:
        """outputs: files or folders, relative to the stage, that later stages and users take."""
        files: list[Path] = []
        for name in outputs:
            path = self.folder / name
            files += sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        self.record |= {
            "status": "finished",
            "metrics": dict(metrics),
            "outputs": {
                file.relative_to(self.folder).as_posix(): {"sha256": sha256_file(file), "bytes": file.stat().st_size}
                for file in files
            },
            "timing": {**self.record.get("timing", {}), **(timing or {}), "seconds": self.seconds},
        }
        self.record["checksum"] = _checksum(self.record)
        self._started = None
        write_json(self.folder / "stage.json", self.record)
        (self.folder / "timing.json").unlink(missing_ok=True)


class Run:
    """runs/NAME: `run.json` (recipe, and how the run ended) and its stages. One process at a time; use as a context
    manager. made_from: what the recipe is called, for lists of runs.
    """

    def __init__(
        self,
        root: Path,
        recipe: Mapping[str, Any],
        version: str,
        models: Sequence[str],
        *,
        fresh: bool = False,
        made_from: str | None = None,
    ) -> None:
        self.root, self.code_version = root, version
        self.stages: dict[str, Stage] = {}
        root.mkdir(parents=True, exist_ok=True)
        self._lock = _lock(root)
        path = root / "run.json"
        if path.exists():
            _check_version(path, fresh)
            if fresh:
                _clear(root)
        about = {"name": root.name, "made_from": made_from, "recipe": dict(recipe), "models": list(models)}
        self._about = {"schema_version": SCHEMA_VERSION, **about}
        write_json(path, self._about)

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None = None, error: BaseException | None = None, _: object = None
    ) -> None:
        ended: dict[str, Any] = {"state": "finished"}
        if kind is not None:
            ended = {"state": "failed", "error": str(error)} if issubclass(kind, Exception) else {"state": "stopped"}
        with suppress(AthanorError, OSError):  # a full disk, perhaps the very reason
            write_json(self.root / "run.json", {**self._about, **ended})
        self._lock.close()

    @property
    def seconds(self) -> float:
        """Active seconds of all stages so far."""
        return sum(stage.seconds for stage in self.stages.values())

    def stage(self, name: str, settings: Mapping[str, Any], inputs: Mapping[str, str]) -> Stage:
        stage = Stage(self.root / name, name, settings, inputs, self.code_version)
        stage.begin()
        self.stages[name] = stage
        return stage


def _check_version(path: Path, fresh: bool) -> None:
    """Raises RunError for a run of a newer version, and, unless it is to be made afresh, for a damaged record."""
    try:
        found = _read_record(path).get("schema_version")
    except AthanorError:
        if fresh:
            return
        raise
    if not isinstance(found, int):
        if fresh:
            return
        raise RunError(f"{path} is damaged: it has no schema_version.", "Remove it, or start over with --fresh.")
    if found > SCHEMA_VERSION:
        raise RunError(
            f"{path.parent} was made by a newer version of Athanor: its format is {found}, known is {SCHEMA_VERSION}.",
            "Upgrade athanor-lm, or choose another --name.",
        )


def _read_record(path: Path) -> dict[str, Any]:
    record = read_json(path)
    if not isinstance(record, dict):
        raise RunError(f"{path} is not a JSON object.", "Restore it, or remove it so that it is made again.")
    return record


def _read_stage(path: Path) -> dict[str, Any]:
    """A stage's record. Raises RunError when it lacks what every stage has."""
    record = _read_record(path)
    finished, timing = record.get("status") == "finished", record.get("timing", {})
    outputs = record.get("outputs", {} if not finished else None)
    if _is_amount(version := record.get("schema_version", SCHEMA_VERSION)) and version > SCHEMA_VERSION:
        raise RunError(
            f"{path} was made by a newer version of Athanor.", "Upgrade athanor-lm, or choose another --name."
        )
    sound = (
        record.get("status") in ("running", "finished")
        and isinstance(record.get("fingerprint"), str)
        and isinstance(record.get("metrics", {} if not finished else None), dict)
        and isinstance(timing, dict)
        and _is_amount(timing.get("seconds", 0.0))
        and (not finished or _is_amount(timing.get("peak_memory_bytes", 0)))
        and isinstance(outputs, dict)
        and all(isinstance(output, dict) and {"sha256", "bytes"} <= set(output) for output in outputs.values())
        and (not finished or record.get("checksum") == _checksum(record))
    )
    if not sound:
        raise damaged(path)
    return record


def _checksum(record: Mapping[str, Any]) -> str:
    """Of what later stages take from a finished stage's record."""
    return fingerprint({"metrics": record["metrics"], "outputs": record["outputs"]})


def damaged(path: Path) -> RunError:
    """A file of a stage that is missing or not what was written there."""
    what = "is damaged" if path.exists() else "is missing"
    return RunError(f"{path} {what}.", f"Remove {path.parent} to make the stage again, or start over with --fresh.")


def _read_seconds(path: Path) -> dict[str, float]:
    """What `beat` noted; nothing where it is missing or damaged, since it only counts time."""
    try:
        seconds = _read_record(path)["seconds"]
    except (AthanorError, KeyError):
        return {}
    return {"seconds": float(seconds)} if _is_amount(seconds) else {}


def _is_amount(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < float("inf")


def is_running(root: Path) -> bool:
    """Whether a process holds the run. False on systems without locks."""
    try:
        import fcntl

        with open(root / ".lock", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except ImportError:
        return False
    except OSError as error:
        return error.errno in (errno.EWOULDBLOCK, errno.EACCES)
    return False


def run_folders(runs: Path = RUNS) -> list[Path]:
    """The runs in `runs`, by name."""
    return sorted(record.parent for record in runs.glob("*/run.json"))


def finished_models(run: Path) -> list[Path]:
    """The model folders of the run's finished stages, the last stage first."""
    names = _read_record(run / "run.json").get("models", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise RunError(f"{run / 'run.json'} is damaged.", "The run's own command, given again, repairs it.")
    stages = [run / name for name in reversed(names)]
    return [
        stage / "model"
        for stage in stages
        if (stage / "model" / "config.json").is_file()
        and (stage / "stage.json").is_file()
        and _read_record(stage / "stage.json").get("status") == "finished"
    ]


def _unused(path: Path) -> Path:
    """`path`, or with a number behind it: what was set aside before is kept."""
    candidates = (path.with_name(f"{path.name}-{number}") for number in itertools.count(2))
    return path if not path.exists() else next(candidate for candidate in candidates if not candidate.exists())


def _clear(root: Path) -> None:
    """Removes what a run has made, and nothing else that may lie in the folder."""
    for path in sorted(root.iterdir()):
        if path.is_dir() and ((path / "stage.json").exists() or path.name == "tensorboard"):
            shutil.rmtree(path)
        elif path.name in ("plan.json", "calibration.json") or path.name.startswith("report."):
            path.unlink()


def _lock(root: Path) -> IO[str]:
    file = open(root / ".lock", "a+", encoding="utf-8")  # noqa: SIM115, held for as long as the run is
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:  # not a POSIX system: no lock to take
        return file
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            return file  # a file system without locks
        file.seek(0)
        holder = file.read().strip() or "unknown"
        file.close()
        raise RunError(
            f"{root} is in use by another process ({holder}).", "Wait for it, stop it, or choose another --name."
        ) from None
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return file
