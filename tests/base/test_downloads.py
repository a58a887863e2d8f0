"""Pinned downloads against a local folder of wheels, with the real pip and without network."""

from __future__ import annotations

import base64
import hashlib
import threading
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from athanor.base import downloads
from athanor.base.downloads import PinnedPackage, cache_folder, cached_path, fetch, fetch_all
from athanor.base.errors import DataError


def make_wheel(folder: Path, name: str, payload: bytes) -> PinnedPackage:
    """A minimal valid wheel with one data file."""
    info = f"{name}-1.0.dist-info"
    members = {
        f"{name}/data.txt": payload,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\nRequires-Python: <3\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(
        f"{path},sha256={base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b'=').decode()},{len(data)}\n"
        for path, data in members.items()
    )
    path = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as file:
        for member, data in members.items():
            file.writestr(member, data)
        file.writestr(f"{info}/RECORD", record + f"{info}/RECORD,,\n")
    data = path.read_bytes()
    return PinnedPackage(name, "1.0", path.name, hashlib.sha256(data).hexdigest(), len(data))


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all the package index pip can see, and an empty cache."""
    folder = tmp_path / "shelf"
    folder.mkdir()
    monkeypatch.setenv("ATHANOR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.delenv("PIP_INDEX_URL", raising=False)
    return folder


def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("ATHANOR_CACHE", raising=False)
    assert cache_folder() == tmp_path / "athanor"
    monkeypatch.setenv("ATHANOR_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"


def test_fetches_verifies_and_then_needs_no_pip(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = make_wheel(shelf, "wheelone", b"hello")
    path = fetch(package)
    assert path == cached_path(package)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == package.sha256
    monkeypatch.setattr(downloads, "_pip_download", lambda *_: pytest.fail("pip was called for a cached file"))
    assert fetch(package) == path
    assert [item.name for item in path.parent.iterdir()] == [package.filename]


def test_damaged_cache_is_fetched_again_and_said_aloud(shelf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    package = make_wheel(shelf, "wheeltwo", b"hello")
    path = fetch(package)
    path.write_bytes(b"x" * package.size)
    assert hashlib.sha256(fetch(package).read_bytes()).hexdigest() == package.sha256
    said = capsys.readouterr().err
    assert said.count("is damaged (") == 1
    assert package.sha256 in said


def test_another_file_under_the_name_is_refused_and_not_kept(shelf: Path) -> None:
    package = make_wheel(shelf, "wheelthree", b"hello")
    pinned = replace(package, sha256="0" * 64)
    with pytest.raises(DataError) as caught:
        fetch(pinned)
    assert "0" * 64 in caught.value.message
    assert package.sha256 in caught.value.message
    assert list(cached_path(pinned).parent.iterdir()) == []


def test_hash_is_checked_even_if_pip_does_not(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = make_wheel(shelf, "wheelfour", b"hello")
    monkeypatch.setattr(
        downloads, "_pip_download", lambda wanted, folder, _: (folder / wanted.filename).write_bytes(b"y" * wanted.size)
    )
    with pytest.raises(DataError, match=package.sha256):
        fetch(package)
    assert not cached_path(package).exists()


def test_not_found_says_what_to_do(shelf: Path) -> None:
    package = PinnedPackage("no-such-wheel", "1.0", "no_such_wheel-1.0-py3-none-any.whl", "0" * 64, 1)
    with pytest.raises(DataError) as caught:
        fetch(package)
    assert package.filename in caught.value.hint
    assert str(cached_path(package).parent) in caught.value.hint


def test_missing_pip_says_so(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = make_wheel(shelf, "wheelfive", b"hello")
    fake = shelf / "python"
    fake.write_text("#!/bin/sh\necho '/usr/bin/python: No module named pip' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setattr(downloads.sys, "executable", str(fake))
    with pytest.raises(DataError, match="no pip"):
        fetch(package)


def test_cache_that_cannot_be_written(shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = make_wheel(shelf, "wheelsix", b"hello")
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("ATHANOR_CACHE", str(tmp_path / "file"))
    with pytest.raises(DataError, match="could not be stored") as caught:
        fetch(package)
    assert "ATHANOR_CACHE" in caught.value.hint


def test_many_at_once_and_two_callers_at_once(shelf: Path) -> None:
    packages = [make_wheel(shelf, f"many{i}", bytes([i])) for i in range(3)]
    results: list[dict[str, Path]] = []
    callers = [threading.Thread(target=lambda: results.append(fetch_all(packages))) for _ in range(2)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(results) == 2
    assert results[0] == results[1] == {package.name: cached_path(package) for package in packages}
    assert sorted(path.name for path in cached_path(packages[0]).parent.iterdir()) == [p.filename for p in packages]


def test_what_has_arrived_is_seen_while_pip_works(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = make_wheel(shelf, "wheelslow", b"hello")
    fake = shelf / "python"
    fake.write_text(
        f"#!/bin/sh\nmkdir $TMPDIR/pip-unpack\nhead -c 40 {shelf / package.filename} > $TMPDIR/pip-unpack/some.whl\n"
        f"sleep 1\ncp {shelf / package.filename} .\n"
    )
    fake.chmod(0o755)
    monkeypatch.setattr(downloads.sys, "executable", str(fake))
    heard: list[int] = []
    fetch(package, heard.append)
    assert 40 in heard
