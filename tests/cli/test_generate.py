"""`athanor generate`: one JSON object or plain text, the same as from Python."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import athanor as package
from athanor.base.files import read_json, write_json

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
    moved = tmp_path / "moved"
    shutil.copytree(model_folder, moved)
    done = athanor("generate", moved, *command[2:])
    assert done.returncode == 0, "the same model elsewhere"
    write_json(moved / "config.json", {**read_json(moved / "config.json"), "rope_theta": 777.0})
    other_weights = ["generate", moved, *command[2:]]
    for other in ([*command[:-1], "4"], [*command, "--format", "int8"], [*command, "--cache", "int8"], other_weights):
        done = athanor(*other)
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


def test_all_settings_are_options_with_their_names(athanor: Athanor, model_folder: Path) -> None:
    from dataclasses import fields

    from athanor.cli.sampling import SETTINGS
    from athanor.engine.sampling import Sampling

    assert list(SETTINGS)
    assert set(SETTINGS) == {field.name for field in fields(Sampling)} - {"constraint"}
    settings = {
        "temperature": 1.1, "top_k": 30, "top_p": 0.9, "min_p": 0.01, "typical_p": 0.95, "repetition_penalty": 1.1,
        "presence_penalty": 0.2, "frequency_penalty": 0.1, "no_repeat_ngram_size": 3,
        "max_tokens": 9, "min_tokens": 9, "seed": 4, "n": 2,
        "logprobs": 2, "logit_bias": {100: 3.5, 101: 2.0}, "suppress_tokens": [120, 121],
        "allowed_tokens": list(range(97, 130)), "stop": ["zz", "yy"], "stop_ids": [122], "prompt_logprobs": True,
    }  # fmt: skip
    as_text = {"logit_bias": "100=3.5, 101=2"}
    searched = ("beams", "length_penalty", "early_stopping")  # which exclude drawing
    assert set(settings) == set(SETTINGS) - set(searched)
    words: list[object] = []
    for name, value in settings.items():
        option = f"--{name.replace('_', '-')}"
        if name == "stop":
            words += [option, "zz", option, "yy"]
        elif name == "prompt_logprobs":
            words += [option]
        else:
            listed = ",".join(map(str, value)) if isinstance(value, list) else value
            words += [option, as_text.get(name, listed)]
    done = athanor("generate", model_folder, "the old", *words, "--json")
    assert done.returncode == 0, done.stderr
    replies = package.load(model_folder).generate_many(["the old"], **settings)
    found = json.loads(done.stdout)["answers"]
    assert [answer["tokens"] for answer in found] == [reply.tokens for reply in replies]
    assert all(len(answer["tokens"]) == 9 and len(answer["logprobs"][0]["top"]) == 2 for answer in found)
    assert found[0]["prompt_logprobs"] == replies[0].prompt_logprobs


@pytest.mark.parametrize(("word", "value"), [("true", True), ("never", "never")])
def test_when_a_search_ends(athanor: Athanor, model_folder: Path, word: str, value: object) -> None:
    words = ["--beams", 3, "--n", 2, "--max-tokens", 6, "--length-penalty", 2]
    done = athanor("generate", model_folder, "the old", *words, "--early-stopping", word, "--json")
    assert done.returncode == 0, done.stderr
    settings = {"beams": 3, "n": 2, "max_tokens": 6, "length_penalty": 2.0, "early_stopping": value}
    replies = package.load(model_folder).generate_many(["the old"], **settings)
    assert [answer["tokens"] for answer in json.loads(done.stdout)["answers"]] == [reply.tokens for reply in replies]
    refused = athanor("generate", model_folder, "the old", *words, "--early-stopping", "soon")
    assert (refused.returncode, "early_stopping = soon" in refused.stderr) == (2, True)


def test_lines_have_settings_of_their_own(athanor: Athanor, model_folder: Path, tmp_path: Path) -> None:
    source, target = tmp_path / "prompts.jsonl", tmp_path / "answers.jsonl"
    asked = [
        {"prompt": "the old", "max_tokens": 3, "logit_bias": {"100": 2}, "stop": ["q"]},
        {"prompt": "the old", "n": 2, "logprobs": 1},
    ]
    source.write_text("\n".join(map(json.dumps, asked)))
    done = athanor("generate", model_folder, "--input", source, "--output", target, "--seed", "1", "--max-tokens", "6")
    assert done.returncode == 0, done.stderr
    lines, lm = [json.loads(line) for line in target.read_text().splitlines()], package.load(model_folder)
    assert lines[0]["text"] == lm.generate("the old", seed=1, max_tokens=3, logit_bias={100: 2}, stop=["q"]).text
    several = lm.generate_many(["the old"], seed=1, max_tokens=6, n=2, logprobs=1)
    assert lines[1]["text"] == [reply.text for reply in several]
    assert [each[0]["logprob"] for each in lines[1]["logprobs"]] == [reply.logprobs[0] for reply in several]
    for bad, said in [
        ({"temprature": 1}, "temprature"),
        ({"top_p": 7}, "top_p"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
    ]:
        source.write_text(json.dumps({"prompt": "x", **bad}))
        refused = athanor("generate", model_folder, "--input", source, "--output", tmp_path / "new.jsonl")
        assert refused.returncode == 2
        assert refused.stderr.startswith("error: Line 1")
        assert said in refused.stderr


def test_what_contradicts_itself_has_a_sentence(athanor: Athanor, model_folder: Path) -> None:
    for words, said in [
        (["--stop-ids", "1,x"], "--stop-ids 1,x cannot be read"),
        (["--logit-bias", "5:3"], "Write say 11=-5,42=2.5"),
        (["--logprobs", "3"], "--logprobs has no place in plain text"),
        (["--min-tokens", "9", "--max-tokens", "3"], "min_tokens = 9 is more than max_tokens = 3"),
        (
            ["--allowed-tokens", "5", "--stop-ids", "5", "--min-tokens", "2"],
            "Nothing can be said before min_tokens = 2",
        ),
        (["--beams", "3", "--top-k", "5"], "top_k = 5 contradicts beams = 3"),
        (["--beams", "3", "--n", "4"], "n = 4 answers are more than beams = 3"),
        (["--beams", "3", "--stop", "x"], "stop does not go with beams"),
        (["--length-penalty", "2"], "length_penalty belongs to beam search"),
        (["--prompt", "another"], "Nothing to answer, or too much"),
    ]:
        done = athanor("generate", model_folder, "the old", *words)
        assert (done.returncode, said in done.stderr) == (2, True), done.stderr
        assert "Traceback" not in done.stderr


def test_beams_are_told_with_their_scores(athanor: Athanor, model_folder: Path) -> None:
    done = athanor("generate", model_folder, "the old", "--beams", "4", "--n", "2", "--max-tokens", "5", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["answers"]
    replies = package.load(model_folder).generate_many(["the old"], beams=4, n=2, max_tokens=5)
    assert [answer["tokens"] for answer in found] == [reply.tokens for reply in replies]
    assert [answer["score"] for answer in found] == [reply.score for reply in replies]
    assert found[0]["logprob"] == sum(replies[0].logprobs)
    assert found[0]["score"] >= found[1]["score"]
