"""Drawing in C against its definition in numpy; the same bits on every instruction set."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from athanor.engine.logits import _invert, filtered_weights, log_softmax
from athanor.engine.native import library
from athanor.engine.native.compiling import compilers
from athanor.engine.native.drawing import Kernels
from athanor.engine.sampling import Sampling

pytestmark = pytest.mark.skipif(not compilers(), reason="needs a C compiler")

ROWS = 8


def kernels() -> list[Kernels]:
    found = library.library()
    return [Kernels(found, level) for level in range(found.athanor_best() + 1)]


def made(seed: int, vocab_size: int, kind: str) -> np.ndarray:
    random = np.random.default_rng(seed)
    logits = (random.standard_normal((ROWS, vocab_size)) * random.choice([0.1, 1, 3, 10])).astype(np.float32)
    if kind == "alike":
        logits = np.round(2 * logits) / 2
    if kind == "banned":
        logits[:, random.random(vocab_size) < 0.7] = -np.inf
        logits[:, random.integers(vocab_size)] = 0.0
    return logits


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    vocab_size=st.sampled_from([1, 2, 15, 127, 128, 129, 1000, 8192]),
    kind=st.sampled_from(["", "alike", "banned"]),
    temperature=st.sampled_from([0.01, 0.3, 1.0, 1.7]),
    top_k=st.sampled_from([0, 0, 1, 5, 40]),
    top_p=st.sampled_from([1.0, 0.999999, 0.95, 0.5, 0.01]),
    min_p=st.sampled_from([0.0, 0.0, 0.05]),
)
def test_tokens_are_those_of_the_definition(
    seed: int, vocab_size: int, kind: str, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    logits, uniform = made(seed, vocab_size, kind), np.random.default_rng(seed).random(ROWS)
    (first, logprobs), *others = [each.draw(logits, temperature, top_k, top_p, min_p, uniform) for each in kernels()]
    for other in others:
        assert np.array_equal((first, logprobs), other)
    assert np.array_equal(logprobs, kernels()[0].logprobs(logits, first))
    weights = filtered_weights(logits, sampling)
    # Within rounding of a bound a token may fall on either side.
    either = [_invert(weights, np.clip(uniform + shift, 0, 1 - 1e-9)) for shift in (-2e-6, 0.0, 2e-6)]
    assert all(token in near for token, near in zip(first, zip(*either, strict=True), strict=True))


def test_many_rows_are_shared_out_among_threads() -> None:
    logits = np.concatenate([made(seed, 1000, "") for seed in range(20)])
    uniform = np.random.default_rng(0).random(len(logits))
    for each in kernels():
        tokens, logprobs = each.draw(logits, 1.0, 0, 1.0, 0.0, uniform)
        for start in range(0, len(logits), ROWS):
            some = slice(start, start + ROWS)
            assert np.array_equal(each.draw(logits[some], 1.0, 0, 1.0, 0.0, uniform[some])[0], tokens[some])
            assert np.array_equal(each.logprobs(logits[some], tokens[some]), logprobs[some])


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([1, 15, 129, 8192]), st.sampled_from(["", "alike", "banned"]))
def test_log_probabilities_are_those_of_the_definition(seed: int, vocab_size: int, kind: str) -> None:
    logits = made(seed, vocab_size, kind)
    tokens = logits.argmax(-1)
    first, *others = [each.logprobs(logits, tokens) for each in kernels()]
    for other in others:
        assert np.array_equal(first, other)
    np.testing.assert_allclose(first, log_softmax(logits)[np.arange(ROWS), tokens], atol=2e-5)


@pytest.mark.parametrize("filters", [(1.0, 0, 1.0, 0.0), (0.7, 0, 0.95, 0.0), (1.0, 5, 0.5, 0.1), (1.0, 0, 1.0, 0.1)])
@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_logits_that_are_no_numbers_give_some_token(broken: float, filters: tuple[float, int, float, float]) -> None:
    some, all_of_them = made(1, 1000, ""), np.full((ROWS, 1000), broken, dtype=np.float32)
    some[:, ::7] = broken
    for each in kernels():
        for logits in (some, all_of_them):
            tokens, _ = each.draw(logits, *filters, np.linspace(0, 1 - 1e-9, ROWS))
            assert ((tokens >= 0) & (tokens < 1000)).all()
