"""Checkpoints: the newest whole one is found, whatever has happened to the others."""

from __future__ import annotations

import json
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from athanor.base.errors import RunError
from athanor.training import checkpoints
from athanor.training.checkpoints import Checkpoint, CheckpointWriter, Retention, find_checkpoint, save_checkpoint

TWO = Retention(last=2)


def save(folder: Path, step: int, retention: Retention = TWO, loss: float | None = None) -> None:
    numbers = {"position": {"row": step}, "held_out": {} if loss is None else {"loss": loss}}
    save_checkpoint(folder, step, {"w": torch.full((3,), float(step))}, numbers, retention)


def load(folder: Path) -> Checkpoint:
    found, _ = find_checkpoint(folder)
    assert found is not None
    return found


def steps(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in folder.iterdir())


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    assert find_checkpoint(tmp_path / "none") == (None, 0)
    for step in (5, 10, 15, 20):
        save(tmp_path, step)
    assert steps(tmp_path) == [15, 20]
    save(tmp_path, 21, Retention(last=1))
    assert steps(tmp_path) == [21]
    assert load(tmp_path).tensors()["w"].tolist() == [21.0] * 3
    assert load(tmp_path).numbers["position"] == {"row": 21}


@pytest.mark.parametrize(
    ("retention", "kept"),
    [
        (Retention(last=1), [12]),
        (Retention(last=3), [10, 11, 12]),
        (Retention(last=1, best="loss"), [4, 12]),
        (Retention(last=1, every=3), [3, 6, 9, 12]),
        (Retention(last=1, every=3, most=2), [9, 12]),
        (Retention(last=2, best="loss", every=5), [4, 5, 10, 11, 12]),
        (Retention(last=1, best="accuracy"), [12]),
    ],
)
def test_the_policy_says_what_is_kept_and_bounds_the_disk(
    retention: Retention, kept: list[int], tmp_path: Path
) -> None:
    losses = {2: 3.0, 4: 1.0, 6: 1.5, 8: 1.0, 10: 2.0}  # measured at every second checkpoint
    for step in range(1, 13):
        save(tmp_path, step, retention, losses.get(step))
        assert len(steps(tmp_path)) < retention.bound
    assert steps(tmp_path) == kept


@pytest.mark.parametrize("wrong", [{"last": 0}, {"every": -1}, {"most": 0}])
def test_a_policy_that_keeps_nothing_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least the last"):
        Retention(**wrong)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def _replace(path: Path, old: str, new: str) -> None:
    path.write_text(path.read_text().replace(old, new))


DAMAGES: list[Callable[[Path], Any]] = [
    lambda folder: _cut(folder / "state.safetensors"),
    lambda folder: _flip(folder / "state.safetensors"),
    lambda folder: (folder / "state.safetensors").unlink(),
    lambda folder: (folder / "state.json").unlink(),
    lambda folder: (folder / "state.json").write_text("{"),
    lambda folder: (folder / "state.json").write_text("[]"),
    lambda folder: (folder / "state.json").write_text('{"schema_version": "x", "sha256": ""}'),
    lambda folder: _replace(folder / "state.json", '"row": 3', '"row": 7'),
    lambda folder: shutil.rmtree(folder) or folder.mkdir(),
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_newest_ones_give_way_to_one_before(
    damage: Callable[[Path], Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step, Retention(last=3))
    damage(tmp_path / "step-00000003")
    assert load(tmp_path).numbers["step"] == 2
    assert "step-00000003 is damaged; the one before it is used." in capsys.readouterr().err
    _cut(tmp_path / "step-00000002" / "state.safetensors")
    assert load(tmp_path).numbers["step"] == 1
    assert find_checkpoint(tmp_path)[1] == 2
    save(tmp_path, 2)  # made again in its place; what lies beyond it has no worth
    assert load(tmp_path).numbers["step"] == 2
    assert steps(tmp_path) == [1, 2]


def test_all_damaged_starts_over_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for step in (1, 2):
        save(tmp_path, step)
        _flip(tmp_path / f"step-{step:08d}" / "state.safetensors")
    assert find_checkpoint(tmp_path) == (None, 2)
    assert "step-00000001 is damaged; training starts over." in capsys.readouterr().err


def _set_schema(folder: Path, version: int) -> None:
    path = folder / "state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": version}))


def test_an_older_schema_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path, 1)
    _set_schema(tmp_path / "step-00000001", 1)
    assert find_checkpoint(tmp_path) == (None, 1)
    assert "is of an older version of Athanor; training starts over." in capsys.readouterr().err


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    save(tmp_path, 1)
    _set_schema(tmp_path / "step-00000001", 999)
    with pytest.raises(RunError, match="newer version"):
        find_checkpoint(tmp_path)


def test_what_a_killed_process_left_is_no_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, 1)
    shutil.copytree(tmp_path / "step-00000001", tmp_path / ".step-00000002.partial")
    assert load(tmp_path).numbers["step"] == 1
    save(tmp_path, 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000001", "step-00000003"]


def test_saving_the_same_step_again_never_removes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: pytest.fail("removed"))
    save(tmp_path, 1)


@pytest.fixture
def written(tmp_path: Path) -> tuple[CheckpointWriter, list[str]]:
    """A writer, and a list that grows with each checkpoint it misses."""
    missed: list[str] = []
    return CheckpointWriter(tmp_path, Retention(), lambda: missed.append("missed")), missed


def test_the_background_writes_the_state_as_it_was(
    written: tuple[CheckpointWriter, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training goes on while the thread waits, and what it changes is not in the checkpoint."""
    started, go_on = threading.Event(), threading.Event()

    def slow(*arguments: Any) -> None:
        started.set()
        go_on.wait(10)
        save_checkpoint(*arguments)

    monkeypatch.setattr(checkpoints, "save_checkpoint", slow)
    weight = torch.ones(3)
    writer, missed = written
    writer.save(1, {"w": weight}, {}, lambda: None)
    assert started.wait(10)
    weight.fill_(2.0)
    writer.check()
    assert find_checkpoint(tmp_path)[0] is None
    go_on.set()
    writer.save(2, {"w": weight}, {}, lambda: None)  # waits for the first
    writer.join()
    assert steps(tmp_path) == [1, 2]
    assert load_file(tmp_path / "step-00000001" / "state.safetensors")["w"].tolist() == [1.0] * 3
    assert not missed


def test_with_little_memory_it_is_written_at_once(
    written: tuple[CheckpointWriter, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "available_memory", lambda: 0.0)
    monkeypatch.setattr(threading.Thread, "start", lambda _: pytest.fail("a thread"))
    written[0].save(1, {"w": torch.ones(3)}, {}, lambda: None)
    assert steps(tmp_path) == [1]


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX limits")
def test_a_disk_without_room_costs_a_checkpoint_and_is_told(
    written: tuple[CheckpointWriter, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import resource

    writer, missed = written
    large = {"w": torch.ones(10_000)}
    writer.save(1, large, {}, lambda: None)
    writer.join()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        writer.save(2, large, {}, lambda: None)
        writer.join()
        assert missed == ["missed"]
        assert "checkpoint of step 2 could not be written, training goes on without it" in capsys.readouterr().err
        with pytest.raises(RunError, match="step 3 could not be written; that of step 1 is kept") as raised:
            writer.save_now(3, large, {}, lambda: None)
        assert "Free some space" in raised.value.hint
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    writer.save(4, large, {}, lambda: None)
    writer.join()
    assert steps(tmp_path) == [1, 4]
    assert missed == ["missed"] * 2


def test_any_other_error_of_the_thread_is_raised_by_the_next_check(
    written: tuple[CheckpointWriter, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(checkpoints, "save_checkpoint", broken)
    with pytest.raises(ZeroDivisionError):
        written[0].save(1, {"w": torch.ones(3)}, {}, lambda: None)
        written[0].join()
    assert not written[1]


def test_what_the_checkpoints_take_of_the_disk_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    writer = CheckpointWriter(tmp_path / "checkpoints", Retention(last=2, best="loss", every=10, most=4), lambda: None)
    writer.announce({"w": torch.ones(1000)})
    assert capsys.readouterr().err == "Checkpoints of 4.0 kB: at most 8 on the disk, 32 kB.\n"
    writer.announce({"w": torch.empty(1 << 50, device="meta")})
    assert "are free there: when the disk is full" in capsys.readouterr().err
