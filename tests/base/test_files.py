"""A reader sees the old file or the new one, and every way of failing is one sentence."""

from __future__ import annotations

import errno
import hashlib
import json
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from athanor.base import files
from athanor.base.errors import AthanorError
from athanor.base.files import (
    atomic_folder,
    atomic_path,
    expanded_path,
    fingerprint,
    read_json,
    read_jsonl,
    sha256_bytes,
    sha256_file,
    to_json,
    write_bytes,
    write_json,
    write_text,
)

_json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(), children, max_size=4),
    max_leaves=12,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write_half(path: Path) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError


def write_half_a_folder(path: Path) -> None:
    with atomic_folder(path) as temporary:
        (temporary / "newer.txt").write_text("3")
        raise ZeroDivisionError


def test_writes_replace_and_leave_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folders" / "a.txt"
    write_text(path, "炼丹炉\n")
    write_bytes(str(path), b"second")
    assert path.read_bytes() == b"second"
    assert names(path.parent) == ["a.txt"]


def test_a_failure_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(ZeroDivisionError):
        write_half(path)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("moment", ["written", "synced"])
def test_a_killed_writer_leaves_the_old_file_and_the_next_one_succeeds(tmp_path: Path, moment: str) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    code = (
        "import os, sys\nfrom athanor.base import files\n"
        "if sys.argv[2] == 'synced': files.os.replace = lambda *_: os._exit(9)\n"
        "with files.atomic_path(sys.argv[1]) as temporary:\n"
        "    temporary.write_text('new')\n"
        "    if sys.argv[2] == 'written': os._exit(9)\n"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path), moment]).returncode == 9
    assert path.read_text() == "old"
    write_text(path, "newest")
    assert path.read_text() == "newest"
    assert names(tmp_path) == ["a.txt"]


def test_folders_are_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "model"
    with atomic_folder(path) as temporary:
        (temporary / "deep").mkdir()
        write_text(temporary / "deep" / "old.txt", "1")
    with atomic_folder(path) as temporary:
        write_text(temporary / "new.txt", "2")
    assert names(path) == ["new.txt"]
    with pytest.raises(ZeroDivisionError):
        write_half_a_folder(path)
    assert names(path) == ["new.txt"]
    assert names(tmp_path) == ["model"]


def test_a_full_disk_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(AthanorError, match=r"The disk is full: .*a\.txt could not be written") as caught:
        write_text(path, "new")
    assert "continues" in caught.value.hint
    with pytest.raises(AthanorError, match="The disk is full"), atomic_folder(tmp_path / "model") as temporary:
        (temporary / "x").write_text("x")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_places_that_cannot_be_written_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder" / "x").mkdir(parents=True)
    for path in (tmp_path / "file" / "a.txt", tmp_path / "folder", tmp_path / ("n" * 300)):
        with pytest.raises(AthanorError, match="cannot be written") as caught:
            write_text(path, "text")
        assert str(path) in caught.value.message
    with pytest.raises(AthanorError, match="cannot be written"), atomic_folder(tmp_path / "file"):
        pass
    assert (tmp_path / "file").read_text() == ""


def test_no_permission_is_said_of_the_right_file(tmp_path: Path) -> None:
    denied = PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "source.txt"))
    with pytest.raises(PermissionError), atomic_path(tmp_path / "a.txt"):
        raise denied
    with pytest.raises(AthanorError, match="No permission to write"), atomic_path(tmp_path / "a.txt") as temporary:
        raise PermissionError(errno.EACCES, "Permission denied", str(temporary))
    with pytest.raises(AthanorError, match="No permission"), atomic_folder(tmp_path / "model") as temporary:
        raise PermissionError(errno.EROFS, "Read-only file system", str(temporary / "weights"))


@given(_json_values)
def test_json_round_trip_and_fingerprint(value: object) -> None:
    text = to_json(value)
    assert json.loads(text) == value
    assert fingerprint(json.loads(text)) == fingerprint(value)


def test_json_is_canonical_and_readable(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"b": 1, "a": "炉"})
    assert path.read_text(encoding="utf-8") == '{\n  "a": "炉",\n  "b": 1\n}\n'
    assert read_json(path) == {"a": "炉", "b": 1}
    assert fingerprint({"b": 1, "a": [1.0]}) == fingerprint({"a": [1.0], "b": 1}) != fingerprint({"a": [1.5], "b": 1})
    assert fingerprint({"a": 1}) == hashlib.sha256(b'{"a":1}').hexdigest()
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"loss": float("nan")})
    assert read_json(path)["b"] == 1


def test_unreadable_json_is_named(tmp_path: Path) -> None:
    with pytest.raises(AthanorError, match=r"a\.json does not exist"):
        read_json(tmp_path / "a.json")
    with pytest.raises(AthanorError, match="cannot be read"):
        read_json(tmp_path)
    for content in (b"", b"{", b"\xff\xfe\x00"):
        (tmp_path / "a.json").write_bytes(content)
        with pytest.raises(AthanorError, match=r"a\.json is not valid JSON"):
            read_json(tmp_path / "a.json")


def test_json_lines_survive_a_cut(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    whole = b'{"step": 1}\n\n{"step": 2, "text": "\xe7\x82\x89"}\n{"step": 3}\n'
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        assert [value["step"] for value in read_jsonl(path)] == [1, 2, 3][: whole[:length].count(b"}\n")]


def test_broken_json_lines_are_named(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    with pytest.raises(AthanorError, match="does not exist"):
        read_jsonl(path)
    for line in (b"{oops", b"\xff\xff\xff"):
        path.write_bytes(b'{"step": 1}\n' + line + b"\n")
        with pytest.raises(AthanorError, match=r"Line 2 of .*log\.jsonl is not valid JSON"):
            read_jsonl(path)


def test_hashes_of_files_and_bytes_agree(tmp_path: Path) -> None:
    data = bytes(range(256)) * 10_000
    write_bytes(tmp_path / "a", data)
    assert sha256_file(tmp_path / "a") == sha256_bytes(data) == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("atomic", [atomic_path, atomic_folder])
def test_writers_of_one_place_come_one_after_the_other(atomic: Any, tmp_path: Path) -> None:
    inside = threading.Lock()

    def write(text: str) -> None:
        with atomic(tmp_path / "place") as temporary:
            assert inside.acquire(blocking=False)
            time.sleep(0.02)
            (temporary if atomic is atomic_path else temporary / "file").write_text(text * 1000)
            inside.release()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, "abcdefgh"))
    found = tmp_path / "place"
    text = (found if found.is_file() else found / "file").read_text()
    assert text == text[0] * 1000
    assert names(tmp_path) == ["place"]


def test_what_a_killed_writer_left_is_in_nobodys_way(tmp_path: Path) -> None:
    (tmp_path / ".a.partial").write_text("half")
    (tmp_path / ".b.partial" / "c").mkdir(parents=True)
    (tmp_path / ".b.partial" / "old").write_text("half")
    write_text(tmp_path / "a", "whole")
    with atomic_folder(tmp_path / "b") as temporary:
        (temporary / "new").write_text("whole")
    assert names(tmp_path) == ["a", "b"]
    assert names(tmp_path / "b") == ["new"]
    assert (tmp_path / "a").read_text() == "whole"


def test_a_home_that_nobody_has() -> None:
    assert expanded_path("~/x") == Path.home() / "x"
    with pytest.raises(AthanorError, match="no such home folder"):
        expanded_path("~nosuchuser/x")
