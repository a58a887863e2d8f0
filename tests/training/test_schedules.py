"""The learning rate's factor: it rises, stays, falls, and a later turn goes on from the level reached."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from athanor.training.schedules import Growth, Schedule, Turn


@given(st.integers(0, 20), st.integers(0, 50), st.integers(1, 50), st.floats(0, 0.5))
def test_it_rises_then_falls_and_ends_one_part_above_the_final_value(
    warmup: int, before: int, decay: int, final: float
) -> None:
    schedule, turn = Schedule(warmup, final), Turn(warmup + before, warmup + before + decay)
    factors = [schedule.factor(step, [turn]) for step in range(1, turn.end + 1)]
    assert all(a <= b for a, b in pairwise(factors[: turn.step]))
    assert all(a > b for a, b in pairwise(factors[max(0, turn.step - 1) :]))
    assert all(factor == 1 for factor in factors[warmup : turn.step])
    part = (1 - final) / (decay + 1)
    assert factors[-1] == pytest.approx(final + part)
    assert min(factors) > 0


@st.composite
def turns(draw: st.DrawFn) -> list[Turn]:
    """Turns as the loop takes them: each later, and to an earlier end."""
    step, end, taken = draw(st.integers(1, 20)), draw(st.integers(60, 200)), []
    for _ in range(draw(st.integers(1, 4))):
        taken.append(Turn(step, end))
        step, end = draw(st.integers(step, end - 1)), end
        if step >= end - 1:
            break
        end = draw(st.integers(step + 1, end))
    return taken


@given(turns(), st.floats(0, 0.5))
def test_later_turns_continue_from_the_level_reached(taken: list[Turn], final: float) -> None:
    schedule = Schedule(0, final)
    factors = [schedule.factor(step, taken) for step in range(1, taken[-1].end + 1)]
    assert all(a >= b - 1e-12 for a, b in pairwise(factors))
    assert final - 1e-12 <= factors[-1] <= 1
    for number in range(1, len(taken)):
        turn, earlier = taken[number], taken[:number]
        for step in range(1, turn.step + 1):
            assert factors[step - 1] == pytest.approx(schedule.factor(step, earlier)), "the past is not rewritten"
        level = schedule.factor(turn.step, earlier) if turn.step else 1.0
        if number == len(taken) - 1 and turn.end > turn.step:
            assert factors[-1] == pytest.approx(final + (level - final) / (turn.end - turn.step + 1))


def test_no_turn_stays_at_the_peak() -> None:
    assert [Schedule(4).factor(step, []) for step in (1, 2, 4, 5, 10**6)] == [0.25, 0.5, 1, 1, 1]
    assert Schedule(0).factor(1, [Turn(5, 5)]) == 1


@pytest.mark.parametrize("final", [0.0, 0.1])
def test_linear_and_cosine_fall_from_the_warmup_to_the_end(final: float) -> None:
    steps, warmup = 50, 10
    for kind in ("linear", "cosine"):
        schedule = Schedule(warmup, final, kind)  # type: ignore[arg-type]
        turn = schedule.turn_of(steps, decay_share=0.3)
        assert turn == Turn(warmup, steps)
        factors = [schedule.factor(step, [turn]) for step in range(1, steps + 1)]
        assert factors[:warmup] == pytest.approx([step / warmup for step in range(1, warmup + 1)])
        done = [(step - warmup) / (steps - warmup + 1) for step in range(warmup + 1, steps + 1)]
        shape = [1 - x if kind == "linear" else 0.5 * (1 + math.cos(math.pi * x)) for x in done]
        assert factors[warmup:] == pytest.approx([final + (1 - final) * level for level in shape])
    assert Schedule(warmup).turn_of(steps, 0.3) == Turn(35, 50)
    assert Schedule(60, 0.0, "cosine").turn_of(steps, 0.3) == Turn(50, 50)


def test_growth_doubles_in_equal_stages() -> None:
    growth = Growth(4, 32, share=0.6)
    assert [growth.at(x) for x in (0.0, 0.19, 0.21, 0.39, 0.41, 0.59, 0.6, 1.0, 7.0)] == [
        4,
        4,
        8,
        8,
        16,
        16,
        32,
        32,
        32,
    ]
    assert {Growth(8, 8).at(x / 10) for x in range(11)} == {8}


@pytest.mark.parametrize(("first", "last"), [(0, 8), (3, 8), (16, 8), (-2, 8)])
def test_growth_that_cannot_be(first: int, last: int) -> None:
    with pytest.raises(ValueError, match="doubled"):
        Growth(first, last)
