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
        "--speculate",
        model_folder,
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


def test_a_file_of_prompts_is_answered_and_continued(athanor: Athanor, model_folder: Path, tmp_path: Path) -> None:
    source, target = tmp_path / "prompts.jsonl", tmp_path / "answers.jsonl"
    asked = ["the old", {"prompt": "numbers", "id": "b"}, {"messages": [{"role": "user", "content": "?"}]}, "x" * 5000]
    source.write_text("\n".join(map(json.dumps, asked)))
    options = ["--max-tokens", "8", "--seed", "3"]
    command = ["generate", model_folder, "--input", source, "--output", target, *options]
    done = athanor(*command, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["refused"] == 1
    whole = target.read_bytes()
    lines = [json.loads(line) for line in whole.splitlines()]
    lm = package.load(model_folder)
    assert lines[0]["text"] == lm.generate("the old", max_tokens=8, seed=3).text
    assert (lines[1]["id"], lines[1]["text"]) == ("b", lm.generate("numbers", max_tokens=8, seed=3).text)
    assert lines[2]["text"] == lm.chat(asked[2]["messages"], max_tokens=8, seed=3).text  # type: ignore[index, call-overload]
    assert "tokens" in lines[3]["error"]
    target.write_bytes(whole[: whole.index(b"\n") + 20])  # killed within the second answer
    done = athanor(*command)
    assert "4 prompts are answered" in done.stdout, done.stderr
    assert target.read_bytes() == whole
    done = athanor(*command[:-1], "4")
    assert done.returncode == 2
    assert "something else" in done.stderr


def test_prompts_that_cannot_be_answered_have_a_sentence(athanor: Athanor, model_folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "prompts.jsonl"
    source.write_text('"fine"\n{"text": "x"}\n')
    done = athanor("generate", model_folder, "--input", source, "--output", tmp_path / "out.jsonl")
    assert done.returncode == 2
    assert "Line 2" in done.stderr
    assert not (tmp_path / "out.jsonl").exists()
    done = athanor("generate", model_folder, "--input", source)
    assert "--output" in done.stderr


def test_what_answers_may_look_like(athanor: Athanor, model_folder: Path, tmp_path: Path) -> None:
    schema, grammar = tmp_path / "schema.json", tmp_path / "grammar.lark"
    schema.write_text('{"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 2}')
    grammar.write_text('start: ("a" | "b") "!"')
    command = ["generate", model_folder, "--prompt", "x", "--seed", "1"]
    assert len(json.loads(athanor(*command, "--json-schema", schema).stdout)) == 2
    assert athanor(*command, "--grammar", grammar).stdout in ("a!\n", "b!\n")
    for wrong, message in [
        (["--any-json", "--regex", "a"], "error: any_json and regex cannot both hold."),
        (["--json-schema", tmp_path], f"error: {tmp_path} cannot be read"),
    ]:
        done = athanor(*command, *wrong)
        assert done.returncode == 2
        assert done.stderr.startswith(message), done.stderr


def test_lines_may_have_constraints_of_their_own(athanor: Athanor, model_folder: Path, tmp_path: Path) -> None:
    source, target = tmp_path / "prompts.jsonl", tmp_path / "answers.jsonl"
    asked = [{"prompt": "a", "regex": "[0-9]{3}"}, {"prompt": "b"}, {"prompt": "c", "regex": "("}]
    asked.append({"prompt": "d", "json_schema": {"const": [1]}})
    source.write_text("\n".join(map(json.dumps, asked)))
    done = athanor("generate", model_folder, "--input", source, "--output", target, "--choice", "yes", "--seed", "2")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in target.read_text().splitlines()]
    assert lines[0]["text"].isdigit()
    assert lines[1]["text"] == "yes"
    assert "unclosed group" in lines[2]["error"]
    assert lines[3]["text"] == "[1]"
