"""export and import as commands: what they write, what they say, and what they refuse."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Athanor = Callable[..., "subprocess.CompletedProcess[str]"]


def test_a_model_goes_out_and_comes_back(athanor: Athanor, model_folder: Path, tmp_path: Path) -> None:
    done = athanor("export", model_folder, "m.gguf", "--format", "f32", "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said == {
        "where": "m.gguf", "family": "qwen3", "parameters": said["parameters"], "format": "F32",
        "bytes": (tmp_path / "m.gguf").stat().st_size, "context": None, "portable": True,
    }  # fmt: skip
    assert athanor("export", model_folder, "m.gguf", "--force").returncode == 0
    assert (tmp_path / "m.gguf").stat().st_size < said["bytes"]
    done = athanor("import", "m.gguf", "models/back")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("models/back: qwen3, ")
    assert "F32" in done.stdout
    assert (tmp_path / "models" / "back" / "tokenizer.json").is_file()


def test_a_context_that_shrinks_is_said(athanor: Athanor, tmp_path: Path, model_folder: Path) -> None:
    settings = json.loads((model_folder / "config.json").read_text())
    settings |= {"use_sliding_window": True, "sliding_window": 32, "max_window_layers": 0}
    settings.pop("layer_types", None)
    (tmp_path / "narrow").mkdir()
    for file in model_folder.iterdir():
        (tmp_path / "narrow" / file.name).symlink_to(file)
    (tmp_path / "narrow" / "config.json").unlink()
    (tmp_path / "narrow" / "config.json").write_text(json.dumps(settings))
    done = athanor("export", "narrow", "m.gguf", "--json")
    assert done.returncode == 0, done.stderr
    assert "the context is set to the window, 32" in done.stderr
    assert json.loads(done.stdout)["context"] == 32


def test_refusals(athanor: Athanor, model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.gguf").write_bytes(b"GGUF\x03\x00\x00")
    (tmp_path / "there").mkdir()
    before = sorted(tmp_path.iterdir())
    refused = [
        (("export", model_folder, "out", "--to", "onnx"), "Known: hf, gguf."),
        (("export", model_folder, "m.gguf", "--format", "q6_k"), "Written are: F32, F16, BF16, Q8_0, Q4_0."),
        (("export", model_folder, "there"), "replace it with --force"),
        (("import", "cut.gguf", "out"), "not a sound GGUF file"),
    ]
    for arguments, message in refused:
        done = athanor(*arguments)
        assert (done.returncode, done.stdout) == (2, ""), arguments
        assert message in " ".join(done.stderr.split())
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.skipif(os.name == "nt", reason="limits of file sizes are of Unix")
def test_no_room_leaves_nothing(model_folder: Path, tmp_path: Path) -> None:
    """A limit on file sizes stands for a full disk."""
    command = [sys.executable, "-m", "athanor.cli.main", "export", str(model_folder), "m.gguf"]
    limited = ["sh", "-c", 'ulimit -f 20; exec "$@"', "sh", *command]
    done = subprocess.run(limited, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "The disk is full" in done.stderr
    assert not any(tmp_path.iterdir())
