"""`athanor generate`: one JSON object or plain text, the same as from Python."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import athanor as package

Athanor = Callable[..., "subprocess.CompletedProcess[str]"]


def test_json_is_one_object_with_what_python_gives(athanor: Athanor, model_folder: Path) -> None:
    done = athanor(
        "generate",
        model_folder,
        "--prompt",
        "the old",
        "--max-tokens",
        "12",
        "--seed",
        "3",
        "--temperature",
        "1.2",
        "--json",
    )
    assert done.returncode == 0, done.stderr
    reply = package.load(model_folder).generate("the old", max_tokens=12, seed=3, temperature=1.2)
    found = json.loads(done.stdout)
    assert sorted(found) == ["finish_reason", "text", "timings", "tokens"]
    assert (found["text"], found["tokens"], found["finish_reason"]) == (reply.text, reply.tokens, reply.finish_reason)
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""


def test_chat_and_standard_input(athanor: Athanor, model_folder: Path) -> None:
    done = athanor(
        "generate", model_folder, "--prompt", "-", "--chat", "--max-tokens", "9", "--temperature", "0", stdin="炉火"
    )
    reply = package.load(model_folder).chat([{"role": "user", "content": "炉火"}], max_tokens=9, temperature=0)
    assert done.stdout == reply.text + "\n"


def test_bad_settings_and_input(athanor: Athanor, model_folder: Path) -> None:
    done = athanor("generate", model_folder, "--prompt", "x", "--top-p", "7")
    assert done.returncode == 2
    assert done.stderr.startswith("error: top_p = 7.0 cannot be used.")
    done = athanor("generate", model_folder, "--prompt", "x" * 5000, "--json")
    assert done.returncode == 2
    assert "tokens" in json.loads(done.stdout)["error"]["message"]
