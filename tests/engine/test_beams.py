"""Beam search gives the tokens and scores of transformers' `generate`, in any company."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import athanor.models as models
from athanor.base.errors import AthanorError
from athanor.engine.engine import Engine
from athanor.engine.language_model import LanguageModel
from athanor.engine.requests import Completion, Request
from athanor.engine.sampling import Sampling
from tests.engine.conftest import RUNGS, random_model
from tests.models.family_rows import DECODERS, PAIRS
from tests.models.test_families import reference

transformers = pytest.importorskip("transformers")
ROWS = {**DECODERS, **PAIRS}
SEARCHES: dict[str, dict[str, Any]] = {
    "plain": {"beams": 3},
    "many": {"beams": 5, "length_penalty": 0.0},
    "long": {"beams": 4, "length_penalty": 2.0, "early_stopping": "never"},
    "short": {"beams": 4, "length_penalty": -1.0},
    "early": {"beams": 4, "early_stopping": True},
    "penalised": {"beams": 3, "repetition_penalty": 1.7, "min_tokens": 8},
}


def theirs_of(theirs: Any, request: Request) -> tuple[list[list[int]], list[float]]:
    sampling = request.sampling
    given: dict[str, Any] = {"input_ids": torch.tensor([request.source or request.prompt])}
    if request.source:
        given["decoder_start_token_id"] = request.prompt[0]
    if sampling.min_tokens:
        given["min_new_tokens"] = sampling.min_tokens
    found = theirs.generate(
        **given, attention_mask=torch.ones_like(given["input_ids"]), do_sample=False,
        num_beams=sampling.beams, num_return_sequences=sampling.n, length_penalty=sampling.length_penalty,
        early_stopping=sampling.early_stopping, max_new_tokens=sampling.max_tokens,
        repetition_penalty=sampling.repetition_penalty, eos_token_id=sorted(request.stop_ids), pad_token_id=95,
        forced_eos_token_id=None, forced_bos_token_id=None, return_dict_in_generate=True, output_scores=True,
    )  # fmt: skip
    tokens = found.sequences[:, len(request.prompt) :].tolist()
    return tokens, found.sequences_scores.tolist()


def check(said: list[Completion], wanted: tuple[list[list[int]], list[float]], stops: frozenset[int]) -> None:
    for completion, tokens, score in zip(said, *wanted, strict=True):
        assert completion.tokens == tokens[: len(completion.tokens)]
        assert all(token == 95 for token in tokens[len(completion.tokens) :])
        assert completion.finish_reason == ("stop" if completion.tokens[-1] in stops else "length")
        assert completion.score == pytest.approx(score, abs=2e-5, rel=1e-6)
    assert [c.score for c in said] == sorted((c.score for c in said), key=lambda score: -(score or 0.0))


@torch.inference_mode()
@pytest.mark.parametrize("name", ["llama", "gpt2", "mistral", "qwen3_moe", "t5 1.1", "bart", "m2m_100", "marian"])
def test_tokens_and_scores_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    theirs = reference(*ROWS[name])
    theirs.save_pretrained(tmp_path)
    ours, rng, asked = models.load(tmp_path), np.random.default_rng(0), []
    stops = frozenset({7, 20})
    for number, search in enumerate(SEARCHES.values()):
        text = rng.integers(3, 95, 9).tolist()
        sampling = Sampling(temperature=0, max_tokens=14, n=1 + number % 3, **search)
        begins = {"prompt": [ours.config.start_id], "source": text} if name in PAIRS else {"prompt": text}  # type: ignore[union-attr]
        asked.append(Request(**begins, sampling=sampling, stop_ids=stops))
    if name in PAIRS and theirs.config.model_type in ("t5", "switch_transformers"):
        theirs.generation_config.use_cache = False  # their cache has as many layers as the encoder
    said = Engine.of(ours).generate(asked)  # type: ignore[arg-type]
    for request, completions in zip(asked, said, strict=True):
        check(completions, theirs_of(theirs, request), stops)


def requests() -> list[Request]:
    rng = np.random.default_rng(4)
    shared = rng.integers(0, 384, 40).tolist()
    made = []
    for i in range(10):
        own = rng.integers(0, 384, int(rng.integers(1, 60))).tolist()
        beams = 1 + i % 4
        sampling = Sampling(temperature=0 if beams > 1 else 1.0, seed=i, max_tokens=30, beams=beams, n=1 + i % beams)
        made.append(Request([*(shared if i % 3 else []), *own], sampling, frozenset(range(0, 384, 40))))
    return made


@pytest.mark.parametrize("rung", RUNGS)
def test_beams_find_the_same_as_alone(rung: Any) -> None:
    model = random_model(5, max_seq_len=200)
    some = requests()
    alone = [Engine(rung(model), model.config).generate([request])[0] for request in some]
    for settings in ({}, {"most_tokens": 7}, {"most_running": 5}, {"blocks": 36}, {"blocks": 36, "most_tokens": 20}):
        engine = Engine(rung(model), model.config, **settings)
        for _ in range(2):
            assert engine.generate(some) == alone
        assert engine.free_blocks == engine.blocks
        assert not any(engine._scheduler.pool._owners)
        assert not engine._scheduler.running
        assert not engine._scheduler.waiting
        assert engine.preemptions > 0 or settings != {"blocks": 36}


def test_beams_share_what_they_have_in_common() -> None:
    model = random_model(5, max_seq_len=400)
    engine = Engine.of(model)
    handle = engine.submit(Request(list(range(320)), Sampling(temperature=0, beams=8, max_tokens=12)))
    held = 0
    while engine.step():
        held = max(held, engine.blocks - engine.free_blocks)
    assert len(handle.result()) == 1
    assert 20 <= held <= 20 + 2 * 8


def test_a_long_search_ends() -> None:
    model = random_model(5, max_seq_len=1300)
    said = Engine.of(model).generate([Request([1, 2], Sampling(temperature=0, beams=2, max_tokens=1200))])
    assert len(said[0][0].tokens) == 1200


def test_a_search_is_cancelled_and_goes_on_with_new_weights() -> None:
    model, other = random_model(5, max_seq_len=200), random_model(6, max_seq_len=200)
    engine, request = Engine.of(model), requests()[3]
    handle = engine.submit(request)
    for _ in range(4):
        engine.step()
    handle.cancel()
    assert [c.finish_reason for c in handle.result()] == ["cancelled"] * request.sampling.n
    assert engine.free_blocks == engine.blocks
    handle = engine.submit(replace(request, stop_ids=frozenset()))
    for _ in range(4):
        engine.step()
    engine.update_weights(other)
    assert len(handle.result()[0].tokens) == 30
    assert engine.free_blocks == engine.blocks


def test_what_contradicts_the_search_is_refused(lm: LanguageModel) -> None:
    for changes, said in [
        ({"beams": 3, "temperature": 0.5}, "temperature = 0.5 contradicts beams = 3"),
        ({"beams": 3, "top_p": 0.5}, "top_p = 0.5 contradicts"),
        ({"beams": 3, "n": 4}, "n = 4 answers are more than beams = 3"),
        ({"beams": 3, "stop": "x"}, "stop does not go with beams"),
        ({"early_stopping": True}, "early_stopping belongs to beam search"),
        ({"beams": 0}, "beams = 0 cannot be used"),
        ({"beams": 3, "early_stopping": "soon"}, "early_stopping = soon cannot be used"),
    ]:
        with pytest.raises(AthanorError, match=said):
            lm.generate("the old", **changes)
    engine = Engine.of(random_model(5, max_seq_len=200), blocks=10)
    with pytest.raises(AthanorError, match="may take 50 tokens in each of 4 beams; the cache holds 160"):
        engine.submit(Request([1] * 20, Sampling(temperature=0, beams=4, max_tokens=30)))
    only = Sampling(temperature=0, beams=4, n=4, max_tokens=1, allowed_tokens=(5, 6))
    with pytest.raises(AthanorError, match="There are only 2 answers"):
        Engine.of(random_model(5)).generate([Request([1], only)])
    streamed = list(lm.stream("the old", beams=2, max_tokens=6))
    assert "".join(piece.text for piece in streamed) == lm.generate("the old", beams=2, max_tokens=6).text
