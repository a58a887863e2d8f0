"""Speculation changes nothing of what is said, on either rung, whatever is guessed; and guesses that come true help."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from athanor.base.errors import ModelError
from athanor.engine.draft_model import DraftModel
from athanor.engine.engine import Engine
from athanor.engine.language_model import LanguageModel, load
from athanor.engine.native.compiling import compilers
from athanor.engine.native_rung import NativeRung
from athanor.engine.requests import Request
from athanor.engine.rung import Rung
from athanor.engine.sampling import Sampling
from athanor.engine.scheduler import Answer
from athanor.engine.speculation import MOST_GUESSED, Lookup, Speculation, Text
from athanor.engine.torch_rung import TorchRung
from athanor.models.decoder import Decoder
from athanor.tokenizer import Tokenizer, train_tokenizer
from tests.engine.asked import STOPS, requests
from tests.engine.conftest import random_model
from tests.engine.test_constraint import constrained

Said = list[list[tuple[list[int], list[float], str, str, list[Any]]]]
RUNGS: dict[str, Callable[[Decoder], Rung]] = {
    "torch": TorchRung,
    "native": lambda model: NativeRung(model, "fp32"),
    "native int8": lambda model: NativeRung(model, "int8", cache="int8"),
}
RUNS = [
    pytest.param(name, marks=pytest.mark.skipif("native" in name and not compilers(), reason="there is no C compiler"))
    for name in RUNGS
]


@pytest.fixture(scope="module")
def long_model(tokenizer: Tokenizer) -> Decoder:
    return random_model(5, tokenizer.vocab_size, max_seq_len=400)


def mixed(tokenizer: Tokenizer) -> list[Request]:
    """Plain ones, and some with constraints, stop strings, log-probabilities and penalties."""
    plain = requests(16)
    strings = [replace(r, sampling=replace(r.sampling, stop=("e", "炉"), min_tokens=1, logprobs=3)) for r in plain[:4]]
    counted = [
        replace(r, sampling=replace(r.sampling, frequency_penalty=0.5, presence_penalty=0.2)) for r in plain[4:8]
    ]
    return [*plain[8:12], *strings[::2], *counted[::2], *constrained(tokenizer)[:10]]


def said_by(engine: Engine, some: Sequence[Request]) -> Said:
    return [[(c.tokens, c.logprobs, c.text, c.finish_reason, c.top) for c in each] for each in engine.generate(some)]


class Oracle:
    """Knows what will be said, and is wrong now and then."""

    def __init__(self, some: Sequence[Request], said: Said, wrong: float) -> None:
        self.known = [[*r.prompt, *tokens] for r, each in zip(some, said, strict=True) for tokens, *_ in each]
        self.rng, self.wrong = np.random.default_rng(7), wrong

    def propose(self, text: Text, k: int) -> Sequence[int]:
        n, now = len(text.tokens), text.tokens.tolist()
        following = next((known[n : n + k] for known in self.known if known[:n] == now), [])
        return [int(self.rng.integers(384)) if self.rng.random() < self.wrong else token for token in following]


def always(self: Speculation, answers: Sequence[Answer], rows: int) -> Counter[Answer]:
    rng = np.random.default_rng(rows)
    return Counter({answer: int(rng.integers(0, MOST_GUESSED + 1)) for answer in answers})


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("limits", [{}, {"most_tokens": 40}, {"blocks": 20}], ids=["together", "chunked", "pre-empted"])
def test_what_is_said_is_the_same_without(
    long_model: Decoder, tokenizer: Tokenizer, name: str, limits: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Speculation, "_choose", always)
    some = mixed(tokenizer)
    expected = said_by(Engine(RUNGS[name](long_model), long_model.config, tokenizer), some)
    for wrong in (0.0, 0.3):
        drafter = Oracle(some, expected, wrong)
        engine = Engine(RUNGS[name](long_model), long_model.config, tokenizer, **limits, drafter=drafter)
        for _ in range(2):  # the second time, what was verified is in the cache
            assert said_by(engine, some) == expected
        assert engine.speculation is not None
        share = engine.speculation.accepted / engine.speculation.drafted
        assert share > 0.9 if wrong == 0 else share < 0.9
        assert engine.free_blocks == engine.blocks
        assert bool(engine.preemptions) == ("blocks" in limits)


def test_right_guesses_take_fewer_steps(
    long_model: Decoder, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Speculation, "_choose", lambda self, answers, rows: Counter(dict.fromkeys(answers, 7)))
    some = [Request([1, 2, 3], Sampling(temperature=1.0, seed=4, max_tokens=80), frozenset())]
    expected = said_by(Engine.of(long_model), some)
    engine = Engine.of(long_model, drafter=Oracle(some, expected, 0.0))
    steps, forward = list[int](), engine.rung.forward
    monkeypatch.setattr(engine.rung, "forward", lambda segments: (steps.append(1), forward(segments))[1])
    assert said_by(engine, some) == expected
    assert len(steps) == 1 + 80 // 8


def text_of(tokens: Sequence[int]) -> Text:
    return Text(np.array(tokens, np.int32), len(tokens), Sampling(), 0)


@pytest.mark.parametrize(
    ("tokens", "guess"),
    [
        ([1, 2, 3, 4, 1, 2, 3], [4, 1, 2, 3]),
        ([1, 2, 9, 7, 1, 2, 8, 7, 1, 2], [8, 7, 1, 2]),
        ([5, 1, 2, 9, 6, 1, 2, 8, 5, 1, 2], [9, 6, 1, 2]),
        ([7, 7, 7], [7, 7, 7, 7]),
        ([1, 2, 3, 4], []),
        ([3, 9, 3], []),
        ([1], []),
    ],
    ids=["goes on", "the last", "the longest", "itself", "new", "one token alone", "short"],
)
def test_looking_up(tokens: list[int], guess: list[int]) -> None:
    assert list(Lookup().propose(text_of(tokens), 4)) == guess


def test_repetitive_text_is_looked_up(long_model: Decoder) -> None:
    engine = Engine.of(long_model, drafter=Lookup())
    bias = tuple((token, 60.0) for token in (5,))
    request = Request([1, 2], Sampling(temperature=0, max_tokens=200, logit_bias=bias), STOPS)
    assert engine.generate([request])[0][0].tokens == [5] * 200
    assert engine.speculation is not None
    assert engine.speculation.accepted > 20


class Slow:
    """Sums of a step's seconds as a function of its rows."""

    def __init__(self, speculation: Speculation, seconds: Callable[[int], float]) -> None:
        self.speculation, self.seconds = speculation, seconds

    def measured(self) -> Speculation:
        for rows in (1, 2, 4, 8, 16):
            for _ in range(20):
                self.speculation.note_step(rows, self.seconds(rows))
        return self.speculation


def chosen(seconds: Callable[[int], float], *chances: float) -> list[int]:
    answers: list[Any] = [_Answer(chance) for chance in chances]
    return [Slow(Speculation(Lookup(), 256), seconds).measured()._choose(answers, len(answers))[a] for a in answers]


class _Answer:
    def __init__(self, chance: float) -> None:
        self.chance = chance


def test_how_much_is_guessed_follows_from_what_was_measured() -> None:
    assert chosen(lambda rows: 1 + 0.1 * rows, 0.97)[0] > 6
    assert 1 <= chosen(lambda rows: 1 + 0.1 * rows, 0.5)[0] <= 4
    assert chosen(lambda rows: 1 + 0.1 * rows, 0.01) == [0]
    assert chosen(lambda rows: float(rows), 0.9) == [0], "rows that cost as much as the first are not worth it"
    sure, unsure = chosen(lambda rows: 1 + 0.2 * rows, 0.95, 0.2)
    assert sure > 3
    assert unsure == 0


@pytest.mark.parametrize("guess", [None, [-1], [10**9, 1], ["x"]], ids=["error", "below", "beyond", "no number"])
def test_a_drafter_that_fails_changes_nothing(
    long_model: Decoder, guess: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Broken:
        def propose(self, text: Text, k: int) -> Sequence[int]:
            if guess is None:
                raise ValueError("no idea")
            return guess  # type: ignore[no-any-return]

    monkeypatch.setattr(Speculation, "_choose", lambda self, answers, rows: Counter(dict.fromkeys(answers, 3)))
    some = requests(5)
    engine = Engine.of(long_model, drafter=Broken())
    assert said_by(engine, some) == said_by(Engine.of(long_model), some)
    assert engine.free_blocks == engine.blocks
    assert capsys.readouterr().err.count("no idea") == (guess is None)


@pytest.mark.parametrize("padding", [0, 5, -5], ids=["as long a table", "a longer one", "a shorter one"])
@pytest.mark.parametrize("seed", [5, 6], ids=["the same model", "another"])
def test_a_draft_model_draws_with_the_same_noise(
    long_model: Decoder, tokenizer: Tokenizer, seed: int, padding: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Speculation, "_choose", lambda self, answers, rows: Counter(dict.fromkeys(answers, 3)))
    some = [replace(request, prompt=[token % 379 for token in request.prompt]) for request in requests(5)]
    expected = said_by(Engine.of(long_model, tokenizer), some)
    draft = random_model(seed, tokenizer.vocab_size + padding, max_seq_len=400 if seed == 5 else 150)
    drafter = DraftModel(TorchRung(draft), draft.config, long_model.config.vocab_size)
    engine = Engine.of(long_model, tokenizer, drafter=drafter)
    assert said_by(engine, some) == expected
    assert engine.speculation is not None
    share = engine.speculation.accepted / engine.speculation.drafted
    # without some tokens the same noise falls on others
    assert share > (0.8 if padding >= 0 else 0.4) if seed == 5 else 0 < share < 0.5


def test_draft_models_of_a_language_model(folder: Path, lm: LanguageModel, tmp_path: Path) -> None:
    expected = lm.generate("the old", max_tokens=30, seed=1).tokens
    for speculate in ("off", "lookup", folder, lm):
        assert load(folder, speculate=speculate).generate("the old", max_tokens=30, seed=1).tokens == expected
    other = train_tokenizer(["something else entirely, again and again"] * 3, vocab_size=384)
    stranger = LanguageModel(random_model(1, other.vocab_size), other)
    with pytest.raises(ModelError, match="vocabulary"):
        load(folder, speculate=stranger)


VERIFIER = """
import json, sys
from dataclasses import asdict
from athanor.engine.engine import Engine
from athanor.engine.requests import Request
from athanor.engine.sampling import Sampling
from tests.engine.conftest import random_model

def told(**line):
    print(json.dumps(line), flush=True)
    return json.loads(sys.stdin.readline())

class Asked:
    def propose(self, text, k):
        usual = asdict(Sampling())
        settings = {name: value for name, value in asdict(text.sampling).items() if value != usual[name]}
        return told(tokens=text.tokens.tolist(), n_prompt=text.n_prompt, sampling=settings, key=text.key, k=k)

engine = Engine.of(random_model(5, max_seq_len=400), drafter=Asked())
request = Request([1, 2, 3], Sampling(temperature=1.0, seed=4, max_tokens=60, repetition_penalty=1.1))
said = engine.generate([request])[0][0].tokens
print(json.dumps({"said": said, "accepted": engine.speculation.accepted}), flush=True)
"""


def test_what_decides_may_be_another_process() -> None:
    """A small model guesses here, the one that decides is behind a pipe."""
    model = random_model(5, max_seq_len=400)
    draft = DraftModel(TorchRung(model), model.config, model.config.vocab_size)
    command, environment = (
        [sys.executable, "-c", VERIFIER],
        {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    guessed = 0
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, env=environment
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for line in process.stdout:
            asked = json.loads(line)
            if "said" in asked:
                break
            tokens, settings = np.array(asked["tokens"], np.int32), Sampling(**asked["sampling"])
            guess = draft.propose(Text(tokens, asked["n_prompt"], settings, asked["key"]), asked["k"])
            process.stdin.write(json.dumps(list(guess)) + "\n")
            guessed += len(guess)
    request = Request([1, 2, 3], Sampling(temperature=1.0, seed=4, max_tokens=60, repetition_penalty=1.1))
    assert asked["said"] == Engine.of(model).generate([request])[0][0].tokens
    assert guessed
