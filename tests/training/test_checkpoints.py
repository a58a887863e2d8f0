"""Checkpoints: the newest whole one is found, whatever has happened to the others."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from athanor.base.errors import RunError
from athanor.training.checkpoints import find_checkpoint, read_checkpoint, save_checkpoint


def load_checkpoint(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    found = find_checkpoint(folder)
    return None if found is None else (read_checkpoint(found[0]), found[1])


def save(folder: Path, step: int, keep: int = 2) -> None:
    save_checkpoint(folder, step, {"w": torch.full((3,), float(step))}, {"position": {"row": step}}, keep)


def steps(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in folder.iterdir())


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path / "none") is None
    for step in (5, 10, 15, 20):
        save(tmp_path, step)
    assert steps(tmp_path) == [15, 20]
    save(tmp_path, 21, keep=1)
    assert steps(tmp_path) == [21]
    tensors, numbers = load_checkpoint(tmp_path) or pytest.fail("not found")
    assert tensors["w"].tolist() == [21.0] * 3
    assert numbers["position"] == {"row": 21}


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


DAMAGES: list[Callable[[Path], Any]] = [
    lambda folder: _cut(folder / "state.safetensors"),
    lambda folder: _flip(folder / "state.safetensors"),
    lambda folder: (folder / "state.safetensors").unlink(),
    lambda folder: (folder / "state.json").unlink(),
    lambda folder: (folder / "state.json").write_text("{"),
    lambda folder: (folder / "state.json").write_text("[]"),
    lambda folder: (folder / "state.json").write_text('{"schema_version": "x", "sha256": ""}'),
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_gives_way_to_the_one_before(
    damage: Callable[[Path], Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    damage(tmp_path / "step-00000002")
    _, numbers = load_checkpoint(tmp_path) or pytest.fail("not found")
    assert numbers["step"] == 1
    assert "step-00000002 is damaged; the one before it is used." in capsys.readouterr().err
    save(tmp_path, 2)  # made again in its place
    _, numbers = load_checkpoint(tmp_path) or pytest.fail("not found")
    assert numbers["step"] == 2


def test_all_damaged_starts_over_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for step in (1, 2):
        save(tmp_path, step)
        _flip(tmp_path / f"step-{step:08d}" / "state.safetensors")
    assert load_checkpoint(tmp_path) is None
    assert "step-00000001 is damaged; training starts over." in capsys.readouterr().err


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    save(tmp_path, 1)
    path = tmp_path / "step-00000001" / "state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": 999}))
    with pytest.raises(RunError, match="newer version"):
        load_checkpoint(tmp_path)


def test_what_a_killed_process_left_is_no_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, 1)
    shutil.copytree(tmp_path / "step-00000001", tmp_path / ".step-00000002.partial")
    _, numbers = load_checkpoint(tmp_path) or pytest.fail("not found")
    assert numbers["step"] == 1


def test_saving_the_same_step_again_never_removes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: pytest.fail("removed"))
    save(tmp_path, 1)
