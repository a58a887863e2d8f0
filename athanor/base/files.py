"""Files that survive a crash: everything that matters is written beside its place, flushed, and renamed into it.

A reader therefore sees the old content or the new, never half of either. A full disk becomes an `AthanorError` and
leaves what stood there before.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from athanor.base.errors import AthanorError, DiskFullError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system says when there is no room for a file."""


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _concerns(error: OSError, path: Path, temporary: Path) -> bool:
    """False when it is about some other file that the caller was handling."""
    if error.filename is None:
        return True
    file = Path(os.fsdecode(error.filename))
    return file in (path, temporary, *path.parents) or temporary in file.parents or path in file.parents


@contextmanager
def explain_disk_errors(path: Path, temporary: Path) -> Iterator[None]:
    """Errors of the system about either of the two become AthanorErrors that name `path`."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise DiskFullError(
                f"The disk is full: {path} could not be written.",
                "Free some space and run the same command again; it continues.",
            ) from error
        if not _concerns(error, path, temporary):
            raise
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise AthanorError(f"No permission to write {path}.", "Choose a folder that you may write to.") from error
        if error.errno in (errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG):
            raise AthanorError(f"{path} cannot be written ({error.strerror}).", "Choose another name.") from error
        raise


def expanded_path(path: str | Path) -> Path:
    """The path with `~` and `~name` replaced. Raises AthanorError where no such user is known."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise AthanorError(f"{path} cannot be used: there is no such home folder.", "Write the path out.") from None


def _wait_for(descriptor: int) -> None:
    """Until no other process holds the file. On a system without such locks it does not wait."""
    with suppress(ImportError, OSError):
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Waits until no other process holds `path`, a file that is made for this and stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        _wait_for(file.fileno())
        yield


@contextmanager
def _alone(temporary: Path, make: Callable[[Path], None]) -> Iterator[None]:
    """Two writers of one place come one after the other: the second waits for the first one's temporary to be gone."""
    while True:
        make(temporary)
        try:
            descriptor = os.open(temporary, os.O_RDONLY)
        except FileNotFoundError:
            continue
        try:
            _wait_for(descriptor)
            if not temporary.exists() or not os.path.samestat(os.fstat(descriptor), temporary.stat()):
                continue  # it was renamed while this one waited
            yield
            return
        finally:
            os.close(descriptor)


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Yields a temporary file name beside `path`; on success what was written there is flushed and takes its place."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.partial")
    with explain_disk_errors(path, temporary):
        path.parent.mkdir(parents=True, exist_ok=True)
        with _alone(temporary, Path.touch):
            try:
                yield temporary
                _sync(temporary)
                os.replace(temporary, path)
                _sync(path.parent)
            finally:
                temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path | str) -> Iterator[Path]:
    """Yields a temporary folder; on success its files are flushed and it takes the place of `path` (replaced if there).

    Between the removal of an old folder and the rename there is an instant in which `path` does not exist; callers that
    cannot afford it write to a fresh name and point to it from an atomic file.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.partial")
    with explain_disk_errors(path, temporary):
        path.parent.mkdir(parents=True, exist_ok=True)
        with _alone(temporary, _make_folder):
            try:
                _empty(temporary)
                yield temporary
                for file in temporary.rglob("*"):
                    _sync(file)
                _sync(temporary)
                if path.exists():
                    shutil.rmtree(path)
                os.replace(temporary, path)
                _sync(path.parent)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)


def _make_folder(path: Path) -> None:
    path.mkdir(exist_ok=True)


def _empty(folder: Path) -> None:
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def write_bytes(path: Path | str, data: bytes) -> None:
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path | str, text: str) -> None:
    write_bytes(path, text.encode("utf-8"))


def to_json(value: Any) -> str:
    """Canonical, human-readable JSON: sorted keys, two spaces, UTF-8, no NaN."""
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def write_json(path: Path | str, value: Any) -> None:
    write_text(path, to_json(value))


def read_json(path: Path | str) -> Any:
    """Raises AthanorError when the file is missing or is not JSON."""
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise AthanorError(f"{path} does not exist.") from None
    except OSError as error:
        raise AthanorError(f"{path} cannot be read ({error.strerror}).") from None
    except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, or nested without end
        raise _broken_json(str(path), error) from None


def read_jsonl(path: Path | str) -> list[Any]:
    """One JSON value a line. A last line cut off by a crash is dropped.

    Raises AthanorError when the file is missing or a finished line is not JSON.
    """
    path = Path(path)
    try:
        lines = path.read_bytes().split(b"\n")[:-1]  # what follows the last newline was never finished
    except FileNotFoundError:
        raise AthanorError(f"{path} does not exist.") from None
    except OSError as error:
        raise AthanorError(f"{path} cannot be read ({error.strerror}).") from None
    values = []
    for number, line in enumerate(lines, start=1):
        try:
            values += [json.loads(line)] if line.strip() else []
        except ValueError as error:
            raise _broken_json(f"Line {number} of {path}", error) from None
    return values


def _broken_json(what: str, error: Exception) -> AthanorError:
    return AthanorError(f"{what} is not valid JSON ({error}).", "Restore it, or remove it so that it is made again.")


def sha256_bytes(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path | str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def fingerprint(value: Any) -> str:
    """sha256 of a JSON value in canonical form."""
    canonical = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return sha256_bytes(canonical.encode())
