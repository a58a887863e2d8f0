"""Intervals hold what they promise, and estimates equal brute force."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from athanor.base.randomness import generator
from athanor.base.statistics import bootstrap_mean, pass_at_k, wilson_interval


def test_wilson_interval_of_published_examples() -> None:
    """Newcombe 1998, table I, method 3."""
    for successes, trials, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611)):
        assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=5e-5)
    assert wilson_interval(1, 29) == pytest.approx((0.0061, 0.1718), abs=5e-5)
    assert wilson_interval(0, 0) == (0.0, 1.0)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_interval_is_symmetric_and_holds_the_share(pair: tuple[int, int]) -> None:
    successes, trials = pair
    low, high = wilson_interval(successes, trials)
    assert 0 <= low <= high <= 1
    assert low - 1e-12 <= successes / trials <= high + 1e-12
    assert wilson_interval(trials - successes, trials) == pytest.approx((1 - high, 1 - low))


def test_bootstrap_agrees_with_the_normal_approximation_and_repeats() -> None:
    values = generator(1, "statistics test").normal(3, 2, size=400)
    low, high = bootstrap_mean(values, seed=5)
    half = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.03)
    assert bootstrap_mean(values.tolist(), seed=5) == (low, high)
    assert bootstrap_mean(values, seed=6) != (low, high)


def test_bootstrap_does_not_depend_on_how_memory_is_bounded() -> None:
    values = generator(2, "statistics test").random(100_000)  # 40 rows at a time
    picks = generator(0, "bootstrap").integers(0, values.size, size=(60, values.size))
    expected = np.quantile(values[picks].mean(axis=1), [0.025, 0.975])
    assert bootstrap_mean(values, resamples=60) == tuple(expected)


def test_bootstrap_of_nothing_and_of_one() -> None:
    assert all(np.isnan(bound) for bound in bootstrap_mean([]))
    assert bootstrap_mean([2.5]) == (2.5, 2.5)


def test_pass_at_k_equals_enumeration() -> None:
    for samples in (1, 4, 6):
        for k in range(1, samples + 1):
            expected = [
                np.mean([any(i < correct for i in chosen) for chosen in combinations(range(samples), k)])
                for correct in range(samples + 1)
            ]
            np.testing.assert_allclose(pass_at_k(np.arange(samples + 1), samples, k), expected, atol=1e-12)


def test_pass_at_k_needs_k_samples() -> None:
    for k in (0, 5):
        with pytest.raises(ValueError, match=f"pass@{k}"):
            pass_at_k(np.array([1]), 4, k)
