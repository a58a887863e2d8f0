"""The frame of the command line: speed of help, form of errors, exit codes, purity of JSON."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from athanor.cli.main import VERBS

Athanor = Callable[..., "subprocess.CompletedProcess[str]"]
HEAVY = ("torch", "numpy", "rich.console", "tokenizers", "tiktoken", "jinja2", "pyarrow", "matplotlib")


def test_help_is_fast(athanor: Athanor) -> None:
    """Half a second on a machine at rest; the best of several, and room for a busy one."""
    times = []
    for _ in range(5):
        start = time.perf_counter()
        done = athanor("--help")
        times.append(time.perf_counter() - start)
    assert done.returncode == 0
    assert all(verb in done.stdout for verb in VERBS)
    assert min(times) < 1.0


@pytest.mark.parametrize("arguments", [[], *[[verb] for verb in VERBS], ["corpus", "build"], ["tokenizer", "inspect"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys; sys.argv = ['athanor', *sys.argv[1:], '--help']\n"
        "from athanor.cli import main\n"
        "try: main.main()\n"
        f"except SystemExit: print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.stderr.strip() == "[]"
    assert "Usage: athanor" in done.stdout


def test_version(athanor: Athanor) -> None:
    import athanor as package

    assert athanor("--version").stdout == f"athanor {package.__version__}\n"


def test_an_error_is_a_sentence_a_hint_and_code_2(athanor: Athanor) -> None:
    done = athanor("generate", "nowhere", "--prompt", "x")
    assert done.returncode == 2
    assert done.stdout == ""
    first, hint = done.stderr.splitlines()
    assert first == "error: There is no model 'nowhere'."
    assert "athanor run" in hint


def test_a_place_that_is_no_model_is_called_so(athanor: Athanor, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("a note")
    for place, said in ((tmp_path, "no config.json"), (tmp_path / "notes.txt", "does not end in .gguf")):
        done = athanor("generate", str(place), "--prompt", "x")
        assert done.returncode == 2
        assert said in done.stderr


def test_with_json_the_error_is_an_object_too(athanor: Athanor) -> None:
    done = athanor("generate", "nowhere", "--prompt", "x", "--json")
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"]["message"] == "There is no model 'nowhere'."
    assert json.loads(done.stdout)["error"]["hint"]
    assert done.stderr.startswith("error: ")


@pytest.mark.parametrize(
    ("arguments", "suggested"),
    [
        (["genrate"], "generate"), (["chat", "--temprature", "1"], "--temperature"), (["corpus", "bild"], "build"),
        (["generate", "m"], "--prompt"), (["chat", "--top-k", "many"], "--top-k"),
    ],
)  # fmt: skip
def test_misuse_is_explained(athanor: Athanor, arguments: list[str], suggested: str) -> None:
    done = athanor(*arguments)
    assert done.returncode == 2
    assert suggested in done.stderr
    assert "Traceback" not in done.stderr


def _raise_in_history(error: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    code = (
        "import sys, errno; sys.argv = ['athanor', 'history', *sys.argv[1:]]\n"
        "from athanor.cli import main\n"
        "from athanor.science import history\n"
        f"def fail(*_): raise {error}\n"
        "history.list_runs = fail\n"
        "main.main()"
    )
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)


def test_a_full_disk_is_not_a_bug() -> None:
    done = _raise_in_history(f"OSError({errno.ENOSPC}, 'No space left on device', '/data/x')", "--json")
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"]["message"] == "The disk is full: /data/x."
    assert done.stderr.startswith("error: The disk is full: /data/x.")


def test_ctrl_c_says_how_to_go_on() -> None:
    done = _raise_in_history("KeyboardInterrupt")
    assert done.returncode == 130
    assert done.stderr.strip() == "Stopped. The same command continues."


def test_a_scheduler_learns_that_its_signal_ended_it() -> None:
    done = _raise_in_history("main.Stopped(15)")
    assert done.returncode == 143
    assert done.stderr.strip() == "Stopped. The same command continues."


def test_a_bug_keeps_its_traceback() -> None:
    done = _raise_in_history("ZeroDivisionError('bug')")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "ZeroDivisionError: bug" in done.stderr


@pytest.mark.parametrize("place", ["runs", "runs/smoke"])
def test_a_file_where_a_folder_should_be_is_named(place: str, athanor: Athanor, tmp_path: Path) -> None:
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).write_text("")
    (tmp_path / "text.txt").write_text("A river walks under the old green house.")
    own = ("sft.sources=[]", "corpus.decontaminate=false", 'corpus.sources=["text.txt"]')
    done = athanor("run", "smoke", *(word for setting in own for word in ("--set", setting)))
    assert done.returncode == 2
    assert "runs" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(os.name == "nt", reason="POSIX file descriptors")
@pytest.mark.parametrize("closed", [0, 1, 2])
def test_a_closed_stream_is_no_traceback(closed: int, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "athanor", "history"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=closed != 2, text=True, preexec_fn=lambda: os.close(closed)
    )
    assert done.returncode == 0
    assert "Traceback" not in (done.stderr or "")


@pytest.mark.skipif(os.name == "nt", reason="POSIX pipes")
def test_a_closed_pipe_is_no_traceback() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "athanor.cli.main", "--help"]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert done.stderr == ""
    assert done.returncode == 1
