"""`athanor models`: what is listed, terms that are accepted, and what is fetched."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Athanor = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(autouse=True)
def _own_hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.delenv("ATHANOR_ACCEPT_TERMS", raising=False)


def test_packaged_and_cached_models_are_listed(athanor: Athanor, tmp_path: Path, model_folder: Path) -> None:
    snapshots = tmp_path / "hub" / "models--org--tiny" / "snapshots"
    snapshots.mkdir(parents=True)
    (snapshots / ("a" * 40)).symlink_to(model_folder)
    (snapshots.parent / "refs").mkdir()
    (snapshots.parent / "refs" / "main").write_text("a" * 40)
    (tmp_path / "hub" / "models--org--empty" / "snapshots" / ("b" * 40)).mkdir(parents=True)
    found = json.loads(athanor("models", "--json").stdout)
    by_name = {model["name"]: model for model in found["packaged"]}
    assert by_name["all-minilm-l6-v2"]["where"] is None
    assert by_name["gemma-3-270m"]["terms"].startswith("https://")
    assert [model["name"] for model in found["hub"]] == ["org/tiny"]
    shown = athanor("models").stdout
    assert "terms: Gemma Terms of Use" in shown
    assert "org/tiny" in shown
    assert athanor("models", "--fetch", "org/tiny").stdout.strip() == str(snapshots / ("a" * 40))


def test_terms(athanor: Athanor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = athanor("models", "--fetch", "gemma-3-270m")
    assert done.returncode == 2
    assert "athanor models --accept-terms gemma" in done.stderr
    assert "There are no terms called 'gema'" in athanor("models", "--accept-terms", "gema").stderr
    assert athanor("models", "--accept-terms", "gemma").returncode == 0
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    assert "could not be downloaded" in athanor("models", "--fetch", "gemma-3-270m").stderr


def test_a_name_that_is_none(athanor: Athanor) -> None:
    assert "hf://org/name[@revision][/file.gguf]" in athanor("models", "--fetch", "hf://").stderr
    done = athanor("chat", "no/such")
    assert done.returncode == 2
    assert "all-minilm-l6-v2" in done.stderr
