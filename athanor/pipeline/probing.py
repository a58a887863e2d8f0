"""Which problems to learn from: the levels at which this very model is sometimes right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from athanor.base.errors import RecipeError
from athanor.base.progress import progress
from athanor.base.randomness import subseed
from athanor.environments import distinct_held_out, load_environment
from athanor.evaluation.problems import count_correct
from athanor.models.decoder import Decoder
from athanor.pipeline.life import Life
from athanor.tokenizer import Tokenizer

USUAL_PROBLEMS = 512  # held-out ones that pass@k is measured on
Cell = tuple[str, int]  # environment and level

_PROBLEMS, _SAMPLES = 12, 4  # a cell
_LEAST_EXACT = 0.05  # mean pass rate below which hardly any group has a right answer to learn from
_MIXED = (0.1, 0.8)  # pass rates at which a group of eight has mixed results more often than not
_MOST_LEVELS = 3  # of an environment


@dataclass(frozen=True)
class Difficulty:
    """The cells to learn from with their pass rates, and the kind of reward."""

    rates: Mapping[Cell, float]
    reward: str

    def __str__(self) -> str:
        cells = ", ".join(f"{name} level {level} ({rate:.0%})" for (name, level), rate in self.rates.items())
        return cells if self.reward == "exact" else f"{cells}, with partial credit, since hardly any answer is right"


def probe(life: Life, model: Decoder, tokenizer: Tokenizer) -> Difficulty:
    """Levels are those the recipe names, else those with mixed results. Where nothing is ever right, the levels nearest
    to it are taken with partial credit as the reward, so that answers can still differ.
    """
    recipe = life.recipe.rl
    rates = _pass_rates(life, model, tokenizer)
    if recipe.levels is not None:
        chosen: Mapping[Cell, float] = rates
    else:
        nearest = sorted(rates, key=lambda cell: (-min(rates[cell], 1 - rates[cell]), cell))[:3]
        chosen = _mixed(rates) or {cell: rates[cell] for cell in nearest}
        chosen = _with_enough_problems(
            chosen, rates, recipe.environments, life.recipe.evaluate.problems or USUAL_PROBLEMS
        )
    reward = "exact" if _LEAST_EXACT <= float(np.mean(list(chosen.values()))) < 1 else "partial"
    return Difficulty(chosen, reward)


def _pass_rates(life: Life, model: Decoder, tokenizer: Tokenizer) -> dict[Cell, float]:
    recipe = life.recipe.rl
    seed = subseed(life.seed, "probe")
    rates: dict[Cell, float] = {}
    with progress("Looking for levels with mixed results", total=len(recipe.environments), unit="task") as bar:
        for name in recipe.environments:
            environment = load_environment(name)
            levels = environment.levels if recipe.levels is None else recipe.levels.get(name, [])
            for level in levels:
                problems = [environment.problem(seed, level, i, "train") for i in range(_PROBLEMS)]
                correct = count_correct(
                    model, tokenizer, problems, _SAMPLES, recipe.max_tokens, seed, life.precision_alone
                )
                rates[name, level] = float(correct.mean() / _SAMPLES)
                if recipe.levels is None and rates[name, level] == 0 and level > environment.levels[0]:
                    break  # harder levels will not do better
            bar.update(1)
    if not rates:
        raise RecipeError(
            "rl.levels leaves no level of rl.environments.", "Name at least one level of one environment."
        )
    return rates


def _mixed(rates: Mapping[Cell, float]) -> dict[Cell, float]:
    """Of each environment the few levels nearest to being right every second time: the most to learn from."""
    chosen: dict[Cell, float] = {}
    for name in sorted({name for name, _ in rates}):
        cells = [cell for cell, rate in rates.items() if cell[0] == name and _MIXED[0] <= rate <= _MIXED[1]]
        best = sorted(cells, key=lambda cell: (abs(rates[cell] - 0.5), cell))[:_MOST_LEVELS]
        chosen |= {cell: rates[cell] for cell in sorted(best)}
    return chosen


def _with_enough_problems(
    chosen: Mapping[Cell, float], rates: Mapping[Cell, float], environments: Sequence[str], needed: int
) -> dict[Cell, float]:
    """Adds cells, the probed ones nearest to mixed results first, until `needed` distinct held-out problems exist."""
    enough = dict(chosen)
    probed = sorted((cell for cell in rates if cell not in chosen), key=lambda cell: (abs(rates[cell] - 0.4), cell))
    others = [(name, level) for name in environments for level in load_environment(name).levels]
    for cell in [None, *probed, *(cell for cell in others if cell not in rates)]:
        if cell is not None:
            enough[cell] = rates.get(cell, 0.0)
        if len(list(islice(distinct_held_out(*by_environment(enough), 0), needed))) == needed:
            break
    return enough


def by_environment(cells: Sequence[Cell] | Mapping[Cell, float]) -> tuple[list[str], dict[str, list[int]]]:
    """The environments' names and the levels of each."""
    levels: dict[str, list[int]] = {}
    for name, level in cells:
        levels.setdefault(name, []).append(level)
    return sorted(levels), levels
