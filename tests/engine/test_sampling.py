"""Each filter against its plain definition, and the draw against the distribution it claims."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from athanor.base.errors import AthanorError
from athanor.engine import logits as logits_module
from athanor.engine.logits import Adjustment, chosen_logprobs, draw, filtered_weights, largest
from athanor.engine.native.drawing import drawing_kernels
from athanor.engine.sampling import Sampling

LOGITS = st.lists(st.integers(-32, 32).map(lambda n: n / 4), min_size=2, max_size=30)


@pytest.fixture(params=["numpy", "C"])
def drawing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """By which of the two is drawn."""
    if request.param == "numpy":
        monkeypatch.setattr(logits_module, "drawing_kernels", lambda: None)
    elif drawing_kernels() is None:
        pytest.skip("needs a C compiler")
    return str(request.param)


def filtered(logits: list[float] | np.ndarray, sampling: Sampling) -> np.ndarray:
    """What one row of logits leaves, as probabilities."""
    weights = filtered_weights(np.array([logits], dtype=np.float32), sampling)[0]
    return weights / weights.sum()


def by_definition(logits: list[float], sampling: Sampling) -> tuple[list[float], float]:
    """Token by token, from likeliest to least, ties by id. Also how near the nearest decision was."""
    weights = [math.exp((x - max(logits)) / sampling.temperature) for x in logits]
    probabilities = [weight / sum(weights) for weight in weights]
    order = sorted(range(len(logits)), key=lambda i: -probabilities[i])
    if sampling.top_k:
        least = probabilities[order[min(sampling.top_k, len(order)) - 1]]
        order = [i for i in order if probabilities[i] >= least]  # equals are kept together
    total, mass, kept, margin = sum(probabilities[i] for i in order), 0.0, [], 1.0
    for i in order:
        if sampling.top_p < 1:
            margin = min(margin, abs(mass - sampling.top_p))
            if mass >= sampling.top_p:
                break
        kept.append(i)
        mass += probabilities[i] / total
    bound = sampling.min_p * probabilities[order[0]]
    if sampling.min_p:
        margin = min([margin, *(abs(probabilities[i] - bound) for i in kept)])
    kept = [i for i in kept if probabilities[i] >= bound]
    total = sum(probabilities[i] for i in kept)
    return [probabilities[i] / total if i in kept else 0.0 for i in range(len(logits))], margin


@settings(max_examples=300, deadline=None)
@given(
    logits=LOGITS,
    temperature=st.floats(0.2, 3),
    top_k=st.integers(0, 8),
    top_p=st.sampled_from([0.1, 0.5, 0.9, 1.0]),
    min_p=st.sampled_from([0.0, 0.05, 0.5]),
)
def test_filters_keep_what_their_definition_keeps(
    logits: list[float], temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    expected, margin = by_definition(logits, sampling)
    assume(margin > 1e-5)  # within rounding of a bound a token may fall on either side
    ours = filtered(logits, sampling)
    np.testing.assert_allclose(ours, expected, atol=1e-5)
    assert (ours == 0).tolist() == [p == 0 for p in expected]


def adjusted(
    logits: list[float] | np.ndarray, sampling: Sampling, prompt: Sequence[int], said: Sequence[int] = ()
) -> np.ndarray:
    """What is drawn from after `prompt` and `said`."""
    adjustment, row = Adjustment(sampling, prompt, frozenset({0})), np.array(logits, dtype=np.float32)
    for token in said:
        adjustment.push(token)
    if adjustment.acts(len(said)):
        adjustment.apply(row, len(said))
    return row


@settings(max_examples=100, deadline=None)
@given(
    logits=LOGITS,
    penalty=st.sampled_from([1.0, 0.8, 1.2, 2.0]),
    presence=st.sampled_from([0.0, 0.5, -1.0]),
    frequency=st.sampled_from([0.0, 0.25]),
    prompt=st.lists(st.integers(0, 1), max_size=5),
    said=st.lists(st.integers(0, 1), max_size=5),
)
def test_penalties(
    logits: list[float], penalty: float, presence: float, frequency: float, prompt: list[int], said: list[int]
) -> None:
    sampling = Sampling(repetition_penalty=penalty, presence_penalty=presence, frequency_penalty=frequency)
    after = adjusted(logits, sampling, prompt, said).tolist()
    for i, (old, new) in enumerate(zip(logits, after, strict=True)):
        expected = old if i not in prompt + said else old / penalty if old > 0 else old * penalty
        if i in said:
            expected -= presence + frequency * said.count(i)
        assert new == pytest.approx(expected, rel=1e-6)


def test_bias_bans_and_least_length() -> None:
    logits = [1.0, 2.0, 3.0, 4.0]
    no = -math.inf
    assert adjusted(logits, Sampling(logit_bias={1: 2.5, 3: -1.0}), [0]).tolist() == [1.0, 4.5, 3.0, 3.0]  # type: ignore[arg-type]
    assert adjusted(logits, Sampling(suppress_tokens=(3, 0)), [0]).tolist() == [no, 2.0, 3.0, no]
    assert adjusted(logits, Sampling(allowed_tokens=(3, 0), suppress_tokens=(0,)), [0]).tolist() == [no, no, no, 4.0]
    least = Sampling(min_tokens=2)  # 0 would end it
    assert [adjusted(logits, least, [0], [1] * n)[0].item() for n in range(4)] == [no, no, 1.0, 1.0]


@settings(max_examples=200, deadline=None)
@given(logits=LOGITS, mass=st.sampled_from([0.1, 0.5, 0.9]))
def test_typical_keeps_what_is_nearest_to_the_expected_surprise(logits: list[float], mass: float) -> None:
    weights = [math.exp(x - max(logits)) for x in logits]
    p = [weight / sum(weights) for weight in weights]
    entropy = -sum(x * math.log(x) for x in p)
    order = sorted(range(len(p)), key=lambda i: abs(-math.log(p[i]) - entropy))
    gaps = np.diff([abs(-math.log(p[i]) - entropy) for i in order])
    assume(bool((gaps > 1e-4).all()))
    before, kept = 0.0, []
    for i in order:
        assume(abs(before - mass) > 1e-5)
        if before >= mass:
            break
        kept.append(i)
        before += p[i]
    ours = filtered(logits, Sampling(temperature=1.0, top_p=1.0, typical_p=mass))
    expected = [p[i] / before if i in kept else 0.0 for i in range(len(p))]
    np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_filters_and_penalty_equal_transformers() -> None:
    from transformers.generation.logits_process import (
        MinPLogitsWarper,
        RepetitionPenaltyLogitsProcessor,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    torch.manual_seed(0)
    logits, seen = torch.randn(16, 200) * 3, torch.randint(0, 200, (16, 20))
    steps = [
        RepetitionPenaltyLogitsProcessor(1.3), TemperatureLogitsWarper(0.8), TopKLogitsWarper(30),
        TopPLogitsWarper(0.85), MinPLogitsWarper(0.05),
    ]  # fmt: skip
    theirs = logits
    for step in steps:
        theirs = step(seen, theirs)
    sampling = Sampling(temperature=0.8, top_k=30, top_p=0.85, min_p=0.05, repetition_penalty=1.3)
    penalised = [adjusted(row.numpy(), sampling, ids.tolist()) for row, ids in zip(logits, seen, strict=True)]
    ours = np.stack([filtered(row, sampling) for row in penalised])
    np.testing.assert_allclose(ours, torch.softmax(theirs, -1).numpy(), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=1.0, top_p=1.0),
        Sampling(temperature=0.5, top_p=1.0),
        Sampling(temperature=1.0, top_k=4, top_p=1.0),
        Sampling(temperature=1.0, top_p=0.7),
        Sampling(temperature=1.5, top_p=1.0, min_p=0.2),
    ],
)
def test_draws_follow_the_distribution(sampling: Sampling, drawing: str) -> None:
    """20,000 draws, chi-square at 1 in 1,000 (keys fixed)."""
    logits = np.array([2.0, 1.5, 1.0, 0.5, 0.0, -0.5, -1.0, 0.9], dtype=np.float32)
    expected = np.array(by_definition(logits.tolist(), sampling)[0]) * 20_000
    keys = np.arange(20_000, dtype=np.uint64) * np.uint64(7919)
    tokens = draw(np.tile(logits, (20_000, 1)), sampling, keys, np.zeros(20_000, dtype=np.int64)).tokens
    observed = np.bincount(tokens, minlength=8)
    possible = expected > 0
    assert observed[~possible].sum() == 0
    statistic = ((observed - expected)[possible] ** 2 / expected[possible]).sum()
    assert statistic < {1: 10.8, 2: 13.8, 3: 16.3, 4: 18.5, 5: 20.5, 6: 22.5, 7: 24.3}[int(possible.sum()) - 1]


def test_positions_are_independent(drawing: str) -> None:
    logits = np.zeros((5000, 2), dtype=np.float32)
    keys = np.arange(5000, dtype=np.uint64)
    settings_ = Sampling(temperature=1.0, top_p=1.0)
    first = draw(logits, settings_, keys, np.zeros(5000, dtype=np.int64)).tokens
    second = draw(logits, settings_, keys, np.ones(5000, dtype=np.int64)).tokens
    correlation = np.corrcoef(first, second)[0, 1]
    assert abs(correlation) < 3.3 / math.sqrt(5000)


@pytest.mark.parametrize("temperature", [1e-2, 1e-4, 1e-9, 1e-45, 1e-300])
def test_a_vanishing_temperature_is_greedy(temperature: float) -> None:
    logits = np.array([[1.0, 30.0, 2.0, 29.0]], dtype=np.float32)
    for key in range(20):
        keys = np.array([key], dtype=np.uint64)
        assert draw(logits, Sampling(temperature=temperature), keys, np.array([0])).tokens.item() == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"temperature": -1.0}, {"temperature": math.nan}, {"temperature": math.inf}, {"temperature": "hot"},
        {"top_k": -1}, {"top_k": 2.5}, {"top_p": 0.0},
        {"top_p": 1.1}, {"min_p": 1.0}, {"min_p": -0.1}, {"repetition_penalty": 0.0},
        {"max_tokens": 0}, {"max_tokens": None}, {"typical_p": 0.0}, {"presence_penalty": math.inf}, {"n": 0},
        {"frequency_penalty": "x"}, {"logit_bias": ((1,),)}, {"logit_bias": ((-1, 1.0),)}, {"logprobs": 101},
        {"stop": ("",)}, {"stop_ids": (-1,)}, {"min_tokens": 9, "max_tokens": 3}, {"prompt_logprobs": 1},
        {"allowed_tokens": (1, 2), "suppress_tokens": (2, 1, 0)},
    ],
)  # fmt: skip
def test_settings_that_cannot_be_used_are_named(changes: dict[str, Any]) -> None:
    with pytest.raises(AthanorError, match=next(iter(changes))) as caught:
        Sampling(**changes)  # type: ignore[arg-type]
    assert caught.value.hint


def test_the_likeliest_is_kept_whatever_the_bound() -> None:
    assert filtered([0.0, 2.0, 1.0], Sampling(temperature=1.0, top_p=1e-320)).tolist() == [0.0, 1.0, 0.0]


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([300, 513, 2000]), st.floats(0.01, 8), st.floats(0.01, 0.999))
def test_a_nucleus_of_the_likeliest_is_that_of_all(seed: int, vocab_size: int, spread: float, mass: float) -> None:
    logits = (np.random.default_rng(seed).standard_normal(vocab_size) * spread).astype(np.float32)
    if seed % 2:
        logits = np.round(2 * logits) / 2  # many alike
    weights = np.exp(logits.astype(np.float64) - logits.max())
    order = np.argsort(-weights, kind="stable")
    before = np.concatenate([[0.0], (weights[order] / weights.sum()).cumsum()[:-1]])
    assume(np.abs(before - mass).min() > 1e-6)  # within rounding of the bound a token may fall on either side
    kept = np.sort(order[before < mass])
    assert np.flatnonzero(filtered(logits, Sampling(temperature=1.0, top_p=mass))).tolist() == kept.tolist()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(0, 2**31), st.sampled_from([2, 127, 300, 1000, 5000]), st.integers(2, 40), st.floats(0.01, 8),
    st.sampled_from([0.9, 1.0]),
)  # fmt: skip
def test_a_row_is_drawn_as_it_is_alone(
    drawing: str, seed: int, vocab_size: int, rows: int, spread: float, typical: float
) -> None:
    random = np.random.default_rng(seed)
    logits = (random.standard_normal((rows, vocab_size)) * spread).astype(np.float32)
    keys, positions = random.integers(0, 2**63, rows).astype(np.uint64), random.integers(0, 1000, rows)
    sampling = Sampling(temperature=0.9, top_k=200, top_p=0.97, min_p=0.001, typical_p=typical)
    weights, (tokens, chosen) = filtered_weights(logits, sampling), draw(logits, sampling, keys, positions)
    assert np.array_equal(chosen, chosen_logprobs(logits, tokens))
    for row in range(rows):
        alone = slice(row, row + 1)
        assert np.array_equal(filtered_weights(logits[alone], sampling), weights[alone])
        assert draw(logits[alone], sampling, keys[alone], positions[alone]) == (tokens[alone], chosen[alone])
        assert chosen_logprobs(logits[alone], tokens[alone]) == chosen[alone]


def test_the_largest_come_in_order_and_equals_in_theirs() -> None:
    values, places = largest(np.array([1.0, 3.0, 2.0, 3.0, 2.0, -np.inf], dtype=np.float32), 4)
    assert values.tolist() == [3, 3, 2, 2]
    assert places.tolist() == [1, 3, 2, 4]
    assert largest(np.zeros(2, dtype=np.float32), 5)[1].tolist() == [0, 1]
