"""One file from elsewhere: what has arrived is kept, the next try goes on from there, and only a file of the announced
size and hash takes its place. Over HTTP, unless whoever asks brings another way to open it.

The Hugging Face client restarts an interrupted file from nothing and compares sizes alone, so this is our own; it is
urllib underneath, which knows the user's proxies and certificates.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from athanor.base.errors import DataError
from athanor.base.files import FULL

_BLOCK = 1 << 18
_TIMEOUT = 30.0  # seconds without a byte
_TRIES = 5  # in a row that brought nothing
_PAUSE = 1.0  # seconds before the second try; doubled each time
_PASSING = (408, 429, 500, 502, 503, 504)
_MOST_TEXT = 64 << 20


class TransferError(DataError):
    """status: the server's answer, or None when it could not be reached."""

    def __init__(self, message: str, hint: str = "", status: int | None = None) -> None:
        super().__init__(message, hint)
        self.status = status


class _EndedError(TransferError):
    """Closed early, without a word."""


@dataclass(frozen=True)
class RemoteFile:
    """digest: sha256, or the sha1 under which git stores the file (40 digits)."""

    url: str
    size: int
    digest: str


class _Redirects(urllib.request.HTTPRedirectHandler):
    """A token goes to the host it was meant for and to no other."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        before, after = urlsplit(req.full_url), urlsplit(newurl)
        if request is not None and (before.scheme, before.netloc) != (after.scheme, after.netloc):
            request.remove_header("Authorization")
        return request


def _open(url: str, headers: Mapping[str, str]) -> Any:
    opener = urllib.request.build_opener(_Redirects)
    return opener.open(urllib.request.Request(url, headers=dict(headers)), timeout=_TIMEOUT)


def read_json_from(url: str, headers: Mapping[str, str]) -> Any:
    """The JSON value at an address. Raises TransferError."""
    try:
        return json.loads(read_page(url, headers)[1])
    except (ValueError, RecursionError):
        raise TransferError(f"{url} is not JSON.", status=200) from None


def read_page(url: str, headers: Mapping[str, str]) -> tuple[str, str]:
    """Media type and text (UTF-8) of what is at an address. Raises TransferError."""
    for left in reversed(range(_TRIES)):
        try:
            with _open(url, headers) as response:
                return response.headers.get_content_type(), response.read(_MOST_TEXT).decode("utf-8", "replace")
        except (OSError, http.client.HTTPException) as error:  # without a connection, waiting is no help
            if not left or not (isinstance(error, urllib.error.HTTPError) and _may_pass(error)):
                raise _explained(url, error) from None
        time.sleep(_PAUSE * 2 ** (_TRIES - 1 - left))
    raise AssertionError("unreachable")


Opening = Callable[[str, int], AbstractContextManager[tuple[Any, int]]]
"""(address, place) → what can be read, and the place it really begins at: the wanted one, or 0."""


def read_whole(url: str, opening: Opening, most: int) -> bytes:
    """At most so many bytes of what is at an address; once it is open, what breaks is tried again. Raises
    TransferError.
    """
    for left in reversed(range(_TRIES)):
        is_open = False
        try:
            with opening(url, 0) as (file, _):
                is_open = True
                content: bytes = file.read(most)
                return content
        except OSError as error:
            if not left or not is_open or not _may_pass(error):
                raise _explained(url, error) from None
        time.sleep(_PAUSE * 2 ** (_TRIES - 1 - left))
    raise AssertionError("unreachable")


def download(
    remote: RemoteFile,
    target: Path,
    headers: Mapping[str, str],
    seen: Callable[[int], None],
    opening: Opening | None = None,
) -> None:
    """Fetches the file to `target`, from where an earlier try stopped; `seen` hears how many bytes there are.

    opening: instead of HTTP; it raises OSError where another try may help. Raises TransferError; what has arrived is
    kept beside the target, unless its hash is wrong.
    """
    partial = target.with_name(f"{target.name}.incomplete")
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(partial, "ab") as file:
        if file.tell() > remote.size:
            file.truncate(0)
            file.seek(0)
        _fill(file, remote, opening or _over_http(headers), seen)
        os.fsync(file.fileno())
    if (found := _digest(partial, len(remote.digest))) != remote.digest:
        partial.unlink()
        raise TransferError(
            f"{remote.url} is not the announced file: expected {remote.digest}, found {found}. It was not kept.",
            "Run the same command again; if that does not help, do not use the file.",
            status=200,
        )
    os.replace(partial, target)


def _over_http(headers: Mapping[str, str]) -> Opening:
    @contextmanager
    def opening(url: str, place: int) -> Iterator[tuple[Any, int]]:
        with _open(url, {**headers, "Range": f"bytes={place}-", "Accept-Encoding": "identity"}) as response:
            yield response, place if response.status == 206 else 0

    return opening


def _fill(file: BinaryIO, remote: RemoteFile, opening: Opening, seen: Callable[[int], None]) -> None:
    vain = 0
    seen(file.tell())
    while (have := file.tell()) < remote.size:
        error: Exception = _EndedError(
            f"{remote.url} ends before the announced {remote.size} bytes.",
            "What has arrived is kept, the same command continues; if that does not help, the file there is not whole.",
        )
        try:
            with opening(remote.url, have) as (response, begin):
                if begin != have:  # the whole file again
                    file.truncate(0)
                    file.seek(0)
                _copy(response, file, remote, seen)
        except urllib.error.HTTPError as refused:
            error = refused if refused.code != 416 else error  # asked for what is behind its end
        except (http.client.HTTPException, OSError) as broken:
            if isinstance(broken, OSError) and broken.errno in FULL:
                raise
            error = broken
        if file.tell() == remote.size:
            return
        vain = 0 if file.tell() > have else vain + 1
        if vain >= _TRIES or not _may_pass(error):
            raise _explained(remote.url, error)
        time.sleep(_PAUSE * 2**vain)


def _copy(response: Any, file: BinaryIO, remote: RemoteFile, seen: Callable[[int], None]) -> None:
    while block := response.read(_BLOCK):
        if file.tell() + len(block) > remote.size:
            file.truncate(0)
            raise TransferError(f"{remote.url} is larger than the announced {remote.size} bytes.", status=200)
        file.write(block)
        seen(file.tell())


def _may_pass(error: Exception) -> bool:
    if isinstance(error, FileNotFoundError | PermissionError):
        return False
    return not isinstance(error, urllib.error.HTTPError) or error.code in _PASSING


def _explained(url: str, error: Exception) -> TransferError:
    if isinstance(error, _EndedError):
        return error
    if isinstance(error, urllib.error.HTTPError):
        return TransferError(f"{url} answers {error.code} ({error.reason}).", status=error.code)
    if isinstance(error, FileNotFoundError):
        return TransferError(f"{url} does not exist.", "Is the address right?", status=404)
    if isinstance(error, PermissionError):
        return TransferError(f"{url} may not be read.", "Log in, or set the credentials its host asks for.", status=403)
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    parts = urlsplit(url)
    scheme = "" if parts.scheme.startswith("http") else f"{parts.scheme}://"
    host = f"{scheme}{parts.netloc}" if parts.netloc else url
    return TransferError(
        f"{host} cannot be reached ({str(reason) or type(reason).__name__}).",
        "Check the connection and the proxy (HTTPS_PROXY); what has arrived is kept, the same command continues.",
    )


def _digest(path: Path, length: int) -> str:
    digest = hashlib.sha256() if length == 64 else hashlib.sha1(f"blob {path.stat().st_size}\0".encode())
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
