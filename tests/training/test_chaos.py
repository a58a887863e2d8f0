"""Chaos: killed at random moments, its newest checkpoint damaged, its disk full, training ends with the very same
bytes.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from athanor.base.files import read_json

_DIFFER = {"timing.jsonl", "incidents.json"}  # by nature


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs fork and another process's limits")
@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_chaos_changes_no_byte(kills: int, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.training.chaos", str(tmp_path), str(kills), "20261122"]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["exits"] == [0, *[-signal.SIGKILL] * kills, 0], done.stderr
    whole, cut = (
        {p.relative_to(tmp_path / name): p.read_bytes() for p in (tmp_path / name).rglob("*") if p.is_file()}
        for name in ("whole", "cut")
    )
    assert whole.keys() == cut.keys()
    assert [str(path) for path in whole if path.name not in _DIFFER and whole[path] != cut[path]] == []
    found = read_json(tmp_path / "cut" / "incidents.json")["timing"]
    assert found["resumed"] == kills
    assert found["damaged_checkpoints"] >= 1
    assert found["missed_checkpoints"] >= 1
    for said in ("is damaged; the one before it is used.", "could not be written, training goes on without it"):
        assert said in done.stderr
