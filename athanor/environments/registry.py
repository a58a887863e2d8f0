"""The environments by name, and sets of distinct held-out problems."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice

from athanor.base.errors import RecipeError
from athanor.environments.arithmetic import ADDITION, COMPARING, SUBTRACTION
from athanor.environments.base import Environment, Problem
from athanor.environments.identity import IDENTITY
from athanor.environments.language import COPYING, NUMBER_WORDS, READING, SORTING_NUMBERS
from athanor.environments.letters import COUNTING, REVERSING, SORTING_LETTERS, SPELLING

ENVIRONMENTS: dict[str, Environment] = {
    environment.name: environment
    for environment in (
        ADDITION, SUBTRACTION, COMPARING, COUNTING, REVERSING, SORTING_NUMBERS, SORTING_LETTERS, COPYING, SPELLING,
        NUMBER_WORDS, READING, IDENTITY,
    )
}  # fmt: skip

_GIVE_UP_AFTER = 500  # draws of nothing new at a level mean that its held-out instances are used up


def load_environment(name: str) -> Environment:
    """Raises RecipeError that names the nearest environment when there is none of this name."""
    if name in ENVIRONMENTS:
        return ENVIRONMENTS[name]
    near = difflib.get_close_matches(name, ENVIRONMENTS, n=1)
    meant = f"Did you mean {near[0]}? " if near else ""
    raise RecipeError(f"There is no environment {name!r}.", f"{meant}Known: {', '.join(sorted(ENVIRONMENTS))}.")


def score(problem: Problem, text: str) -> float:
    """The reward of a reply under the problem's own environment."""
    return load_environment(problem.task).reward(problem, text)


def _cells(names: Sequence[str], levels: Mapping[str, Sequence[int]] | Sequence[int] | None) -> list[tuple[str, int]]:
    cells = []
    for name in names:
        environment = load_environment(name)
        wanted = levels.get(name) if isinstance(levels, Mapping) else levels
        cells += [(name, level) for level in environment.levels if wanted is None or level in wanted]
    if not cells:
        raise RecipeError(f"None of {', '.join(names) or 'no environments'} has the levels {levels}.")
    return cells


def distinct_held_out(
    names: Sequence[str], levels: Mapping[str, Sequence[int]] | Sequence[int] | None, seed: int
) -> Iterator[Problem]:
    """Held-out problems with different instances, the levels in turn, until every level is used up."""
    seen: set[str] = set()
    starts = dict.fromkeys(_cells(names, levels), 0)  # the next index of every (name, level) that has some left
    while starts:
        for (name, level), start in list(starts.items()):
            for index in range(start, start + _GIVE_UP_AFTER):
                problem = load_environment(name).problem(seed, level, index, "heldout")
                if problem.meta["instance"] not in seen:
                    seen.add(problem.meta["instance"])
                    starts[name, level] = index + 1
                    yield problem
                    break
            else:
                del starts[name, level]


def held_out_problems(
    names: Sequence[str], levels: Mapping[str, Sequence[int]] | Sequence[int] | None, n: int, seed: int
) -> list[Problem]:
    """`n` distinct held-out problems, spread evenly over environments and levels.

    levels: for every environment alike (those it has), or by name (a name left out has all its levels); None is all.
    Raises RecipeError when fewer than `n` exist.
    """
    problems = list(islice(distinct_held_out(names, levels, seed), n))
    if len(problems) < n:
        raise RecipeError(
            f"Only {len(problems)} distinct held-out problems exist at these levels, {n} are wanted.",
            "Add levels or environments, or ask for fewer.",
        )
    return problems
