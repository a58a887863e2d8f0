"""The tutorials' blocks, run from top to bottom as a reader would."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TUTORIALS = Path(__file__).parents[2] / "docs" / "tutorials"


def blocks(name: str) -> list[tuple[str, str]]:
    return re.findall(r"^```(bash|python|toml)\n(.*?)^```", (TUTORIALS / name).read_text("utf-8"), re.M | re.S)


@pytest.mark.parametrize(
    "name",
    [
        "own-text.md",
        "../objectives.md",
        "../training.md",
        pytest.param("experiments.md", marks=pytest.mark.slow),
        "adding-a-family.md",
        pytest.param("building-by-hand.md", marks=pytest.mark.slow),
        pytest.param("export-and-import.md", marks=pytest.mark.slow),
        pytest.param("engine.md", marks=pytest.mark.slow),
        pytest.param("first-model.md", marks=[pytest.mark.slow, pytest.mark.timeout(900)]),
    ],
)
def test_a_tutorial_runs(name: str, tmp_path: Path) -> None:
    found = blocks(name)
    assert found
    tools = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}", "HF_HUB_OFFLINE": "1"}
    for language, text in found:
        if language == "toml":
            title = re.match(r"# (\S+)", text)
            assert title, "a recipe's first line names its file"
            (tmp_path / title[1]).write_text(text, encoding="utf-8")
            continue
        command = ["bash", "-euo", "pipefail", "-c", text] if language == "bash" else [sys.executable, "-c", text]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
        assert all(float(loss) < 1.5 for loss in re.findall(r"^loss ([\d.]+)", done.stdout, re.M)), done.stdout


def test_examples_of_building_by_hand_are_short() -> None:
    assert max(text.count("\n") for _, text in blocks("building-by-hand.md")) <= 30
