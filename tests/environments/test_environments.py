"""Problems repeat exactly, right answers are accepted and wrong ones are not, and nothing held out is trained on."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from athanor.base.errors import RecipeError
from athanor.environments import (
    ENVIRONMENTS,
    Problem,
    distinct_held_out,
    held_out_problems,
    is_held_out,
    load_environment,
    score,
)
from athanor.environments.arithmetic import addition_columns, subtraction_columns
from athanor.environments.language import number_in_chinese, number_in_english

NAMES = sorted(ENVIRONMENTS)
CELLS = [(name, level) for name in NAMES for level in ENVIRONMENTS[name].levels]
seeds = st.integers(0, 2**31 - 1)
splits = st.sampled_from(["train", "heldout"])


@given(st.sampled_from(CELLS), seeds, st.integers(0, 10**6), splits)
def test_a_problem_is_a_function_of_its_number_and_its_solution_is_right(cell, seed, index, split):
    name, level = cell
    environment = load_environment(name)
    problem = environment.problem(seed, level, index, split)
    assert problem == environment.problem(seed, level, index, split)
    assert (problem.task, problem.level) == cell
    assert problem.language in ("en", "zh")
    solution = environment.solution(problem)
    assert environment.reward(problem, solution) == environment.partial(problem, solution) == 1.0
    assert is_held_out(problem.meta["instance"]) == (split == "heldout")
    assert problem.prompt == problem.prompt.strip()
    assert "{" not in problem.prompt
    if name != "identity":
        assert problem.answer in solution


@given(st.sampled_from([cell for cell in CELLS if cell[0] != "identity"]), seeds, st.data())
def test_a_corrupted_answer_is_wrong(cell, seed, data):
    name, level = cell
    environment = load_environment(name)
    problem = environment.problem(seed, level, 0, "train")
    answer = problem.answer
    place = data.draw(st.integers(0, len(answer) - 1))
    other = data.draw(st.sampled_from("7q三"))
    corrupted = [
        answer[:place] + other + answer[place:],
        answer[:place] + answer[place + 1 :],
        f"{other}{answer}",
        f"{answer}{other}",
        "",
    ]
    for text in corrupted:
        assert environment.reward(problem, text) == 0.0, text
        assert environment.partial(problem, text) <= 0.9
    assert environment.reward(problem, f"{answer} or not") == 0.0


@given(st.text(max_size=200), st.sampled_from(CELLS))
def test_any_text_gets_a_score(text, cell):
    problem = load_environment(cell[0]).problem(0, cell[1], 0, "train")
    assert 0.0 <= load_environment(cell[0]).partial(problem, text) <= 1.0
    assert score(problem, text) in (0.0, 1.0)


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("105", True),
        (" 105.\n", True),
        ("The answer is 105.", True),
        ("7+8=15 4+5+1=10 so 105", True),
        ("得105。", True),
        ("47+58=105", True),
        ("１０５", True),
        ("答案是“105”。", True),
        ("Working:\n7+8=15\n105", True),
        ("104 or 105", False),
        ("-105", False),
        ("2105", False),
        ("so 1050", False),
        ("105 is wrong, so 106", False),
        ("105\n106", False),
        ("10 5", False),
        ("105.0", False),
        ("3.105", False),
    ],
)
def test_what_the_checker_tolerates(text, right):
    problem = Problem("What is 47+58?", "105", "addition", 2, "en", {"instance": "addition:47+58", "solution": "105"})
    assert score(problem, text) == float(right)


def test_a_sequence_must_not_have_more_than_the_answer():
    problem = Problem("Reverse: d o g", "g o d", "reversing", 3, "en")
    assert score(problem, "Reversed: g o d") == score(problem, "G  O D.") == 1.0
    assert score(problem, "x g o d") == score(problem, "g o d d") == score(problem, "god") == 0.0
    assert score(problem, "g o") < load_environment("reversing").partial(problem, "g o") < 0.9


def _operands(prompt: str) -> tuple[int, ...]:
    return tuple(sorted(int(number) for number in re.findall(r"\d+", prompt)))


@pytest.mark.parametrize("name", NAMES)
def test_held_out_and_training_problems_never_meet(name):
    """Brute force over seeds and indices; for arithmetic the operands are read back from the wording itself."""
    environment = ENVIRONMENTS[name]
    sides: dict[str, set[object]] = {"train": set(), "heldout": set()}
    for split, found in sides.items():
        for level in list(environment.levels)[:3]:
            for seed in range(3):
                for index in range(300):
                    problem = environment.problem(seed, level, index, split)
                    found |= {problem.prompt, problem.meta["instance"]}
                    if name in ("addition", "subtraction", "comparing", "sorting_numbers"):
                        found.add(_operands(problem.prompt))
                    if name in ("sorting_letters", "reversing"):
                        letters = problem.answer.split()
                        found.add(
                            tuple(sorted(letters))
                            if name == "sorting_letters"
                            else min(tuple(letters), tuple(letters[::-1]))
                        )
    assert not sides["train"] & sides["heldout"]
    assert min(len(found) for found in sides.values()) > 10


@pytest.mark.parametrize("cell", CELLS)
def test_both_splits_exist_at_every_level_in_both_languages(cell):
    name, level = cell
    for split in ("train", "heldout"):
        drawn = [ENVIRONMENTS[name].problem(5, level, index, split) for index in range(60)]
        assert {problem.language for problem in drawn} == {"en", "zh"}
        assert len({problem.meta["instance"] for problem in drawn}) > 3


def test_at_least_five_hundred_distinct_held_out_problems():
    core = ["addition", "reversing", "counting", "sorting_numbers"]
    problems = held_out_problems(core, None, 600, seed=1)
    assert len({problem.meta["instance"] for problem in problems}) == 600
    assert {problem.task for problem in problems} == set(core)
    assert problems == held_out_problems(core, None, 600, seed=1)
    assert problems != held_out_problems(core, None, 600, seed=2)
    assert all(is_held_out(problem.meta["instance"]) for problem in problems)
    chosen = held_out_problems(["addition", "reversing"], {"addition": [2], "reversing": [4, 5]}, 120, seed=1)
    assert {(problem.task, problem.level) for problem in chosen} == {
        ("addition", 2),
        ("reversing", 4),
        ("reversing", 5),
    }


def test_too_few_and_unknown_are_explained():
    available = len(list(distinct_held_out(["addition"], [1], seed=0)))
    assert 5 <= available < 55
    with pytest.raises(RecipeError, match=f"Only {available} distinct"):
        held_out_problems(["addition"], [1], 55, seed=0)
    with pytest.raises(RecipeError, match="Did you mean reversing"):
        load_environment("reversng")
    with pytest.raises(RecipeError, match="Known: addition"):
        load_environment("")
    with pytest.raises(RecipeError, match="no level 9"):
        load_environment("addition").problem(0, 9, 0, "train")
    with pytest.raises(RecipeError):
        held_out_problems(["addition"], [77], 1, seed=0)


@given(st.integers(0, 99999), st.integers(0, 99999))
def test_columns_are_true_equations_that_spell_the_result(a, b):
    a, b = max(a, b), min(a, b)
    for columns, result in ((addition_columns(a, b), a + b), (subtraction_columns(a, b), a - b)):
        totals = []
        for column in columns:
            left, _, right = column.rpartition("=")
            totals.append(int(right))
            if left:
                first, sign, *_ = re.split(r"([+-])", left)
                rest = sum(int(part) for part in re.findall(r"\d+", left)[1:])
                assert int(first) + (rest if sign == "+" else -rest) == int(right)
        carried = sum(total % 10 * 10**place for place, total in enumerate(totals)) + totals[-1] // 10 * 10 ** len(
            totals
        )
        assert carried == result


def test_numbers_in_words():
    english = {
        0: "zero",
        13: "thirteen",
        20: "twenty",
        32: "thirty-two",
        105: "one hundred five",
        3021: "three thousand twenty-one",
    }
    chinese = {
        0: "零",
        10: "十",
        13: "十三",
        20: "二十",
        32: "三十二",
        105: "一百零五",
        110: "一百一十",
        115: "一百一十五",
        1005: "一千零五",
        1010: "一千零一十",
        2000: "二千",
        3021: "三千零二十一",
        9999: "九千九百九十九",
    }
    assert {number: number_in_english(number) for number in english} == english
    assert {number: number_in_chinese(number) for number in chinese} == chinese
    assert (
        len({number_in_english(n) for n in range(10000)}) == len({number_in_chinese(n) for n in range(10000)}) == 10000
    )
    problem = Problem("105 in words?", "one hundred five", "number_words", 3, "en")
    assert score(problem, "One hundred and five.") == 1.0
    assert score(problem, "one hundred fifty") == 0.0


def test_identity_asks_for_its_keyword():
    problem = next(
        p for p in (ENVIRONMENTS["identity"].problem(0, 1, i, "train") for i in range(99)) if p.answer == "Athanor"
    )
    assert score(problem, "I'm ATHANOR, hello!") == 1.0
    assert score(problem, "I am a robot.") == 0.0


def test_replies_are_short():
    """Roughly tokens: digits, letters standing alone and signs count one each, a word or a Han character one."""
    for name, level in CELLS:
        if name in ("addition", "subtraction") and level > 3:
            continue
        for index in range(40):
            problem = ENVIRONMENTS[name].problem(0, level, index, "train")
            assert len(re.findall(r"\d|[a-zA-Z]+|[\u4e00-\u9fff]|[^\s\w]| (?=\d)", problem.meta["solution"])) <= 32
