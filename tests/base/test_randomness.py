"""Draws are functions of their key: repeatable in any order and process, independent between purposes."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from athanor.base.randomness import generator, key, request_key, uniforms

_paths = st.lists(st.text(alphabet="ab1", max_size=3) | st.integers(-3, 30), max_size=3).map(tuple)


@given(st.integers(0, 3), _paths, st.integers(0, 3), _paths)
def test_keys_are_equal_exactly_when_seed_and_purpose_are(a: int, path_a: tuple, b: int, path_b: tuple) -> None:
    assert (key(a, *path_a) == key(b, *path_b)) == ((a, path_a) == (b, path_b))


def test_a_numpy_index_is_the_same_as_an_integer() -> None:
    assert key(1, "order", np.int64(3)) == key(1, "order", 3) == key(np.int32(1), "order", np.uint8(3))
    assert key(1, "order", 3) != key(1, "order", "3")
    with pytest.raises(TypeError):
        key(1, 0.5)  # type: ignore[arg-type]


def test_the_same_in_another_process() -> None:
    code = "from athanor.base.randomness import *; print(key(7, 'a', 1), generator(7, 'a').random(), request_key(7))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(key(7, "a", 1)), str(generator(7, "a").random()), str(request_key(7))]


def test_generators_of_different_purposes_are_uncorrelated() -> None:
    draws = np.stack([generator(0, "purpose", i).standard_normal(5_000) for i in range(8)])
    correlations = np.corrcoef(draws)[np.triu_indices(8, 1)]
    assert np.abs(correlations).max() < 0.07  # 5 standard deviations


def splitmix64(state: int) -> int:
    """One output of Steele, Lea & Flood 2014, in plain integers."""
    mask = 2**64 - 1
    state = (state + 0x9E3779B97F4A7C15) & mask
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & mask
    return state ^ (state >> 31)


def test_splitmix64_gives_its_published_first_numbers() -> None:
    golden = 0x9E3779B97F4A7C15
    numbers = [splitmix64((1234567 + i * golden) % 2**64) for i in range(3)]
    assert numbers == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**40))
def test_uniforms_are_splitmix64_of_the_counter(stream: int, counter: int) -> None:
    state = (splitmix64(stream) + counter * 0x9E3779B97F4A7C15) % 2**64
    expected = (splitmix64(state) >> 11) * 2.0**-53
    assert uniforms(np.uint64(stream), np.int64(counter)) == expected
    assert 0 <= expected < 1


def test_uniforms_are_uniform_and_independent_of_the_batch() -> None:
    keys = np.array([request_key(1, "request", i) for i in range(50)])
    grid = uniforms(keys[:, None], np.arange(2000))
    assert grid.shape == (50, 2000)
    assert grid.dtype == np.float64
    np.testing.assert_array_equal(grid[7, 100:200], uniforms(keys[7], np.arange(100, 200)))
    counts = np.histogram(grid, bins=100, range=(0, 1))[0]
    chi_squared = ((counts - grid.size / 100) ** 2 / (grid.size / 100)).sum()
    assert 40 < chi_squared < 180  # 99 degrees of freedom; more than five standard deviations either way
    assert abs(np.corrcoef(grid[:, :-1].ravel(), grid[:, 1:].ravel())[0, 1]) < 0.02
    assert np.abs(np.corrcoef(grid)[np.triu_indices(50, 1)]).max() < 0.12
