"""`athanor.load`: streams equal whole replies, text is never cut inside a character, bad input has a sentence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import athanor
from athanor.base.errors import AthanorError, ModelError
from athanor.engine.engine import Limits
from athanor.engine.language_model import LanguageModel, load
from athanor.engine.logits import Drawn
from athanor.engine.rungs import WantedFormat
from athanor.engine.sampling import Sampling
from athanor.models.folder import save_model
from athanor.tokenizer import Tokenizer, train_tokenizer
from athanor.tokenizer.control import TURN_END
from tests.engine.conftest import random_model

MESSAGES = [{"role": "user", "content": "炉火?"}]


@pytest.mark.parametrize("seed", range(6))
def test_stream_gives_the_text_of_chat(lm: LanguageModel, seed: int) -> None:
    settings = {"temperature": 1.5, "top_p": 1.0, "max_tokens": 25, "seed": seed}
    reply = lm.chat(MESSAGES, **settings)
    pieces = list(lm.stream(MESSAGES, **settings))
    assert "".join(piece.text for piece in pieces) == reply.text
    assert [piece.reply for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
    assert pieces[-1].reply is not None
    assert pieces[-1].reply.tokens == reply.tokens
    said = reply.tokens[:-1] if reply.finish_reason == "stop" else reply.tokens
    assert reply.text == lm.tokenizer.decode(said)


def test_half_characters_are_held_back(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that says 火 and 🔥 byte by byte."""
    ids = [lm.tokenizer.encode("a")[0], *"火🔥".encode(), lm.tokenizer.end_of_turn_id]
    byte_ids = {lm.tokenizer.token_bytes(i): i for i in range(256)}
    ids[1:-1] = [byte_ids[bytes([byte])] for byte in ids[1:-1]]
    said = iter(ids)
    monkeypatch.setattr("athanor.engine.drawing.draw", lambda *_: Drawn(np.array([next(said)]), np.zeros(1)))
    assert [piece.text for piece in lm.stream("x")] == ["a", "火", "🔥", ""]


def test_an_engine_has_the_limits_that_it_was_loaded_with(folder: Path) -> None:
    engine = load(folder, limits=Limits(blocks=9, most_tokens=40, most_running=3)).engine
    assert engine.blocks == 9
    assert (engine._scheduler.most_tokens, engine._scheduler.most_running) == (40, 3)
    for limits in (Limits(blocks=-1), Limits(most_tokens=0), Limits(most_running=0)):
        with pytest.raises(AthanorError, match="nothing to work with"):
            load(folder, limits=limits).engine  # noqa: B018


@pytest.mark.parametrize("form", ["fp32", "bf16", "int8", "int4"])
def test_every_number_format_is_loaded(folder: Path, lm: LanguageModel, form: WantedFormat) -> None:
    prompt = lm.text_prompt("the old furnace")
    found = [
        load(folder, format=each).submit("the old furnace", Sampling(max_tokens=1, prompt_logprobs=True)).replies()[0]
        for each in ("fp32", form)
    ]
    exact, coarse = (np.array(reply.prompt_logprobs) for reply in found)
    assert len(exact) == len(prompt) - 1
    assert np.abs(coarse - exact).max() <= {"fp32": 0, "bf16": 0.1, "int8": 0.2, "int4": 2.0}[form]
    assert (form == "fp32") == np.array_equal(coarse, exact)


def test_a_number_format_that_there_is_not_is_named(folder: Path) -> None:
    with pytest.raises(ModelError, match="no number format 'int5'"):
        load(folder, format="int5").generate("x")  # type: ignore[arg-type]


def test_many_equal_one_by_one(lm: LanguageModel) -> None:
    prompts = ["the old", "火", "numbers and letters aloud"]
    together = lm.generate_many(prompts, seed=3, max_tokens=12)
    assert [reply.tokens for reply in together] == [lm.generate(p, seed=3, max_tokens=12).tokens for p in prompts]
    conversations = [MESSAGES, [{"role": "system", "content": "s"}, *MESSAGES]]
    chats = lm.chat_many(conversations, seed=3, max_tokens=12)
    assert [reply.tokens for reply in chats] == [lm.chat(c, seed=3, max_tokens=12).tokens for c in conversations]
    assert lm.generate_many([]) == []
    several = lm.generate_many(prompts, seed=3, max_tokens=12, n=2)
    assert [reply.tokens for reply in several[::2]] == [reply.tokens for reply in together]
    assert all(one.tokens != other.tokens for one, other in zip(several[::2], several[1::2], strict=True))


def test_timings_count(lm: LanguageModel) -> None:
    timings = lm.generate("the old", max_tokens=5, temperature=0).timings
    assert timings["prompt_tokens"] == len(lm.text_prompt("the old"))
    assert timings["completion_tokens"] == 5
    assert 0 < timings["first_token_seconds"] <= timings["seconds"]


def test_the_folder_gives_the_defaults(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "model"
    shutil.copytree(folder, copy)
    written = {"temperature": 0.3, "top_k": 7, "eos_token_id": [1], "suppress_tokens": [3]}
    (copy / "generation_config.json").write_text(json.dumps(written))
    assert load(copy).defaults == Sampling(temperature=0.3, top_k=7, suppress_tokens=(3,))
    (copy / "generation_config.json").unlink()
    assert load(copy).defaults == Sampling()


@pytest.mark.parametrize("written", ['{"temperature": "hot"}', '{"top_k": -3}', "[1]", "{", '{"top_p": [1]}'])
def test_bad_defaults_have_a_sentence(folder: Path, tmp_path: Path, written: str) -> None:
    copy = tmp_path / "model"
    shutil.copytree(folder, copy)
    (copy / "generation_config.json").write_text(written)
    with pytest.raises(AthanorError, match="generation_config"):
        load(copy)


def test_bad_requests_have_a_sentence(lm: LanguageModel) -> None:
    with pytest.raises(AthanorError, match="temprature"):
        lm.generate("x", temprature=1)
    with pytest.raises(AthanorError, match="top_p"):
        lm.chat(MESSAGES, top_p=3.0)
    with pytest.raises(AthanorError, match="role"):
        lm.chat([{"role": "king", "content": "x"}])
    with pytest.raises(AthanorError, match="no messages"):
        list(lm.stream([]))
    with pytest.raises(AthanorError, match="has 201 tokens"):
        lm.generate("\x01" * 200)


def test_a_tokenizer_of_another_model_is_refused(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "model"
    shutil.copytree(folder, copy)
    large = train_tokenizer(["".join(chr(0x4E00 + i) for i in range(400))], 448)
    large.save(copy)
    with pytest.raises(ModelError, match="different models"):
        load(copy)


def test_a_folder_with_older_tokenizer_files_and_a_longer_table(tmp_path: Path) -> None:
    """GPT-2's vocab.json and merges.txt, and rows of the table that no token has."""
    pieces = ["!", "a", "b", "Ġ", "c", "ab", "Ġab", "abc", "<|endoftext|>"]
    (tmp_path / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(pieces)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\nĠ ab\nab c\n")
    save_model(random_model(1, vocab_size=64), tmp_path)
    model = load(tmp_path)
    assert model.text_prompt("abc ab!") == [7, 6, 0]
    reply = model.generate("abc", temperature=1.0, top_p=1.0, top_k=0, max_tokens=40, seed=1)
    assert len(reply.tokens) == 40
    assert max(reply.tokens) < len(pieces)


def test_load_finds_runs(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from athanor.engine.locate import find_model, latest_model

    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match="No run"):
        latest_model()
    with pytest.raises(ModelError, match="no model 'first'"):
        find_model("first")
    for stage, status in (("pretrain", "finished"), ("sft", "finished"), ("control", "finished"), ("rl", "running")):
        shutil.copytree(folder, tmp_path / "runs" / "first" / stage / "model")
        (tmp_path / "runs" / "first" / stage / "stage.json").write_text(json.dumps({"status": status}))
    (tmp_path / "runs" / "first" / "run.json").write_text('{"schema_version": 1, "models": ["pretrain", "sft", "rl"]}')
    empty = tmp_path / "runs" / "second"
    empty.mkdir()
    (empty / "run.json").write_text("{}")
    assert find_model("first") == find_model("runs/first") == latest_model() == Path("runs/first/sft/model")
    assert find_model("first/pretrain") == Path("runs/first/pretrain/model")
    with pytest.raises(ModelError, match="has not made a model"):
        find_model("second")
    with pytest.raises(ModelError) as caught:
        find_model("third")
    assert "first, second" in caught.value.hint
    assert athanor.load("first").generate("the", max_tokens=2).tokens


def test_text_is_never_a_control_token(lm: LanguageModel, tokenizer: Tokenizer) -> None:
    ids = lm.chat_prompt([{"role": "user", "content": TURN_END * 3}])
    assert ids.count(tokenizer.end_of_turn_id) == 1
