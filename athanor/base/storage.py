"""A folder that may lie elsewhere: on this machine, behind a web server, or in a store that fsspec knows (`hf://`,
`s3://`, `gs://` …).

HTTP is read by `athanor.base.transfers` alone; fsspec's own reader would need another HTTP library.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from athanor.base.errors import AthanorError, DataError
from athanor.base.files import expanded_path, explain_disk_errors, sha256_file
from athanor.base.transfers import Opening, RemoteFile, TransferError, download, read_json_from, read_whole

_MOST_JSON = 64 << 20
_ACCESS = {
    "s3": "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; FSSPEC_S3_ANON=true reads a public bucket.",
    "hf": "Log in with `hf auth login`, or set HF_TOKEN.",
}
_CREDENTIALS = ("Credential", "Authentication", "ProfileNotFound")  # in the names of the stores' exceptions
_EXTRAS = {"s3": ("s3fs", "s3"), "s3a": ("s3fs", "s3"), "hf": ("huggingface_hub", "hub")}


@dataclass(frozen=True)
class StoredFile:
    """A file below the folder: its path there, size and hash, as recorded by whoever wrote it."""

    path: str
    size: int
    sha256: str


class Storage:
    """The folder at an address: a path, `http(s)://`, or any address of fsspec's. Raises DataError for one that
    nothing here can read.
    """

    def __init__(self, address: str) -> None:
        self.protocol, colon, rest = address.partition("://")
        self.address = f"{self.protocol}{colon}{rest.rstrip('/')}" if colon else address.rstrip("/")
        if colon and not rest.strip("/"):
            raise DataError(f"{address} names no place.", "Behind :// stands a host, a bucket or a path.")
        self.folder: Path | None = None
        if not colon or self.protocol == "file":
            self.folder = expanded_path(rest if colon else self.address).absolute()
            self.address = str(self.folder)
        self._opening = None if self.folder or self.protocol in ("http", "https") else _with_fsspec(self.protocol)

    def read_json(self, path: str) -> Any:
        """Raises DataError where there is none."""
        if self.folder is None and self._opening is None:
            return read_json_from(self._url(path), {})
        try:
            if self._opening is not None:
                return json.loads(read_whole(self._url(path), self._opening, _MOST_JSON))
            return json.loads(Path(self._url(path)).read_bytes())
        except FileNotFoundError:
            raise DataError(f"{self._url(path)} does not exist.", "Is the address right?") from None
        except OSError as error:
            raise DataError(f"{self._url(path)} cannot be read ({error.strerror}).") from None
        except (ValueError, RecursionError):
            raise DataError(f"{self._url(path)} is not JSON.") from None

    def local(self, file: StoredFile) -> Path | None:
        """Where the file stands on this machine, after a look at its size and hash; None where it must be fetched.

        Raises DataError for one that is missing, or is not the recorded one.
        """
        if self.folder is None:
            return None
        path = self.folder / file.path
        try:
            check(path, file)
        except OSError as error:
            raise DataError(f"{path} cannot be read ({error.strerror}).") from None
        return path

    def fetch(self, file: StoredFile, target: Path, seen: Callable[[int], None] = lambda _: None) -> None:
        """Brings the file to `target`; a broken connection is tried again, from where it broke. Raises DataError for
        a file that cannot be had, or is not the recorded one.
        """
        remote = RemoteFile(self._url(file.path), file.size, file.sha256)
        with explain_disk_errors(target, target):
            download(remote, target, {}, seen, self._opening if self.folder is None else _open_here)

    def _url(self, path: str) -> str:
        web = self.protocol in ("http", "https") and self.folder is None
        return f"{self.address}/{quote(path) if web else path}"


def check(path: Path, file: StoredFile) -> None:
    """Raises DataError unless the file at `path` has the recorded size and hash."""
    size = path.stat().st_size
    if size != file.size:
        raise DataError(f"{path} has {size} bytes, {file.size} are recorded.", "Copy it again from where it was made.")
    if (found := sha256_file(path)) != file.sha256:
        raise DataError(
            f"{path} is not the recorded file: expected {file.sha256}, found {found}.",
            "Copy it again from where it was made.",
        )


@contextmanager
def _open_here(address: str, place: int) -> Iterator[tuple[Any, int]]:
    with open(address, "rb") as file:
        file.seek(place)
        yield file, place


def _with_fsspec(protocol: str) -> Opening:
    import fsspec

    try:
        fsspec.get_filesystem_class(protocol)
    except ValueError:
        raise DataError(
            f"Nothing here reads {protocol}:// addresses.",
            "Give a folder, http(s)://, hf://, s3:// …",
        ) from None
    except ImportError as error:
        package, extra = _EXTRAS.get(protocol, ("", ""))
        hint = f'pip install "athanor-lm[{extra}]"' if package else str(error)
        raise DataError(f"{protocol}:// addresses need {package or 'another package'}.", hint) from None

    @contextmanager
    def opening(address: str, place: int) -> Iterator[tuple[Any, int]]:
        try:
            system, path = fsspec.url_to_fs(address)
            with system.open(path, "rb", cache_type="readahead") as file:
                file.seek(place)
                yield file, place
        except AthanorError:
            raise
        except Exception as error:  # each store has exceptions of its own
            kind, reason = type(error).__name__, " ".join(f"{error}".split())[:200]
            status = getattr(getattr(error, "response", None), "status_code", None)  # the hub's
            if isinstance(error, FileNotFoundError) or status == 404:
                login = f" A private one is hidden: {_ACCESS['hf']}" if protocol == "hf" else ""
                raise TransferError(f"{address} does not exist.", f"Is the address right?{login}", status=404) from None
            if isinstance(error, PermissionError) or status in (401, 403) or any(word in kind for word in _CREDENTIALS):
                hint = _ACCESS.get(protocol.rstrip("a"), "Set the credentials that it asks for.")
                raise TransferError(f"{address} may not be read ({reason or kind}).", hint, status=403) from None
            if isinstance(error, OSError):
                raise
            if isinstance(error, ValueError | TypeError) or "Validation" in kind:
                raise DataError(f"{address} cannot be read ({reason or kind}).", "Is the address right?") from None
            raise ConnectionError(f"{kind}: {reason}") from error  # which another try may mend

    return opening
