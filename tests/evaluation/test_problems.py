"""Exact match and pass@k with a model whose answers are known."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import athanor.evaluation.problems as problems_module
from athanor.base.statistics import wilson_interval
from athanor.engine.requests import Completion
from athanor.environments import Problem, load_environment
from athanor.evaluation.problems import compare_pass_rates, count_correct, examine, proportion
from athanor.tokenizer import Tokenizer, train_tokenizer

ANY_MODEL: Any = SimpleNamespace(config=SimpleNamespace(max_seq_len=512))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["what is 1 + 2? 3"], vocab_size=320)


@pytest.fixture
def problems() -> list[Problem]:
    return [
        load_environment(name).problem(0, load_environment(name).levels[0], i, "heldout")
        for name in ("addition", "reversing")
        for i in range(3)
    ]


def answering(monkeypatch: pytest.MonkeyPatch, tokenizer: Tokenizer, answers: Sequence[tuple[str, bool]]) -> list[Any]:
    """Replaces decoding by these (text, stops) answers; returns the calls it got."""
    calls: list[Any] = []

    def complete(engine: Any, prompts: Any, sampling: Any, stop_ids: Any, keys: Any = None) -> list[Completion]:
        calls.append((prompts, sampling, stop_ids, keys))
        assert len(answers) == len(prompts) * sampling.n
        return [
            Completion(
                [*tokenizer.encode(text), *([tokenizer.end_of_turn_id] if stops else [])],
                [],
                "stop" if stops else "length",
            )
            for text, stops in answers
        ]

    monkeypatch.setattr(problems_module, "complete", complete)
    monkeypatch.setattr(problems_module, "batch_engine", lambda *_: None)
    return calls


def test_right_answers_that_stop_are_counted_by_task(
    monkeypatch: pytest.MonkeyPatch, tokenizer: Tokenizer, problems: list[Problem]
) -> None:
    solutions = [load_environment(p.task).solution(p) for p in problems]
    given = [(s, True) for s in solutions]
    given[1] = ("no idea", True)
    given[4] = (solutions[4], False)  # right, but it would have gone on
    calls = answering(monkeypatch, tokenizer, given)
    examined = examine(ANY_MODEL, tokenizer, problems, 17, "fp32")
    assert examined.right.tolist() == [True, False, True, True, False, True]
    assert examined.texts[0] == solutions[0], "without the stop token"
    assert examined.stop_rate()["value"] == pytest.approx(5 / 6)
    assert examined.by_task() == {
        "addition": proportion(np.array([1, 0, 1]) > 0),
        "reversing": proportion(np.array([1, 0, 1]) > 0),
    }
    _, sampling, stop_ids, _ = calls[0]
    assert sampling.temperature == 0
    assert sampling.max_tokens == 17
    assert stop_ids == frozenset(tokenizer.stop_ids)


def test_a_prompt_longer_than_the_context_is_a_wrong_answer(
    monkeypatch: pytest.MonkeyPatch, tokenizer: Tokenizer, problems: list[Problem]
) -> None:
    model: Any = SimpleNamespace(config=SimpleNamespace(max_seq_len=2))
    answering(monkeypatch, tokenizer, [])
    examined = examine(model, tokenizer, problems, 17, "fp32")
    assert not examined.right.any()
    assert not examined.stopped.any()
    assert len(examined.texts) == len(problems)


def test_samples_are_counted_by_problem_at_temperature_one(
    monkeypatch: pytest.MonkeyPatch, tokenizer: Tokenizer, problems: list[Problem]
) -> None:
    wanted = [0, 1, 2, 3, 4, 2]
    given = [
        (load_environment(p.task).solution(p) if sample < right else "wrong", True)
        for p, right in zip(problems, wanted, strict=True)
        for sample in range(4)
    ]
    calls = answering(monkeypatch, tokenizer, given)
    assert count_correct(ANY_MODEL, tokenizer, problems, 4, 9, 3, "fp32").tolist() == wanted
    _, sampling, _, keys = calls[0]
    assert (sampling.temperature, sampling.top_p, sampling.n) == (1.0, 1.0, 4)
    assert len(set(keys.tolist())) == 24


def test_proportions_have_wilson_intervals() -> None:
    shown = proportion(np.array([True] * 8 + [False] * 2))
    assert shown == {"value": 0.8, "ci95": list(wilson_interval(8, 10)), "n": 10}


def test_pass_rates_are_compared_problem_by_problem() -> None:
    correct = {"before": np.array([0, 0, 4, 8]), "after": np.array([2, 0, 8, 8]), "control": np.array([2, 0, 8, 8])}
    one = compare_pass_rates(correct, 8, 1, seed=0)
    assert one["before"] == pytest.approx(12 / 32)
    assert one["after"] == one["control"] == pytest.approx(18 / 32)
    assert one["difference_ci95"]["after_minus_control"] == [0.0, 0.0], "paired: no difference in any problem"
    low, high = one["difference_ci95"]["after_minus_before"]
    assert 0 <= low < 6 / 32 < high
    assert compare_pass_rates(correct, 8, 8, seed=0)["after"] == pytest.approx(3 / 4)
    assert compare_pass_rates(correct, 8, 1, seed=0) == one
