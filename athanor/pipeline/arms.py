"""The arms of an experiment: a baseline, and changes of its recipe, checked before anything is trained.

A change comes as "a.b=value", or as a table of a TOML file whose name is the arm's. What planning decided for the
baseline (sizes, batch) is kept in every arm that does not change it.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from athanor.base.errors import RecipeError
from athanor.base.files import fingerprint
from athanor.base.progress import duration, quantity
from athanor.pipeline.recipe import Recipe, parse_duration
from athanor.pipeline.recipe_files import make_recipe, override

BASELINE = "baseline"
By = Literal["time", "tokens", "steps"]
_CHANGEABLE = ("corpus", "tokenizer", "model", "pretrain", "precision", "threads")
_POWERS = {"": 1, "k": 10**3, "M": 10**6, "B": 10**9}
_MOST = 10**12


@dataclass(frozen=True)
class Extent:
    """How long every arm is trained: `amount` seconds, tokens (places of its batches) or steps."""

    by: By
    amount: float

    def __str__(self) -> str:
        if self.by == "time":
            return duration(self.amount)
        return f"{quantity(self.amount)} tokens" if self.by == "tokens" else f"{self.amount:,.0f} steps"


def read_extent(by: str, budget: str) -> Extent:
    """budget: "2m" by time, "500k" by tokens, "300" by steps. Raises RecipeError."""
    if by not in get_args(By):
        raise RecipeError(f"--by {by!r} is not known.", f"Choose from {', '.join(get_args(By))}.")
    if by == "time":
        seconds = parse_duration(budget)
        if seconds <= 0:
            raise RecipeError(f"A budget of {budget} is no time at all.", "Give one like 2m.")
        return Extent("time", seconds)
    powers = _POWERS if by == "tokens" else {"": 1}
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kMB]?)", budget)
    amount = float(found[1]) * powers.get(found[2], 0) if found else 0.0
    if not 1 <= amount <= _MOST or (by == "steps" and amount != int(amount)):
        example = "500k or 2M" if by == "tokens" else "300"
        raise RecipeError(f"A budget of {budget!r} cannot be read as {by}.", f"Write it like {example}.")
    return Extent("tokens" if by == "tokens" else "steps", amount)


@dataclass(frozen=True)
class Arm:
    """name: in tables and plots; folder: in the experiment's; changes: what is other than in the baseline."""

    name: str
    folder: str
    changes: Mapping[str, Any]

    def recipe(self, values: Mapping[str, Any]) -> Recipe:
        """The recipe whose settings are `values`, with the changes. Raises RecipeError, naming the arm."""
        try:
            recipe = make_recipe(merge(values, self.changes))
        except RecipeError as error:
            raise RecipeError(f"Arm {self.name}: {error.message}", error.hint) from None
        if recipe.corpus.stream is not None:
            raise RecipeError(
                f"Arm {self.name}: an experiment reads no streamed corpus.", "Give corpus.sources instead."
            )
        if recipe.pretrain.objective != "next_token":
            raise RecipeError(
                f'Arm {self.name}: pretrain.objective = "{recipe.pretrain.objective}" has no bits per byte to compare.',
                'An experiment compares models trained on objective = "next_token".',
            )
        return recipe


def read_arms(settings: Sequence[str], file: Path | None) -> tuple[Arm, list[Arm]]:
    """The baseline and the arms, one for each of `settings` ("a.b=value") and each table of the TOML file, where a
    table `baseline` changes the settings of all. Raises RecipeError.
    """
    changes: dict[str, Any] = {}
    for setting in settings:
        if setting in changes:
            raise RecipeError(f"--set {setting} is given twice.")
        changes[setting] = {}
        override(changes[setting], setting)
    tables = {} if file is None else _read_tables(file)
    baseline = Arm(BASELINE, BASELINE, tables.pop(BASELINE, {}))
    if twice := set(changes) & set(tables):
        raise RecipeError(f"There are two arms {min(twice)!r}.")
    changes |= tables
    if not changes:
        raise RecipeError("There is no arm to compare with the baseline.", "Add --set KEY=VALUE, or --arms FILE.")
    names = _short_names(list(changes))
    arms = [Arm(names[key], _folder(key), change) for key, change in changes.items()]
    for arm in (baseline, *arms):
        _check_changes(arm)
    return baseline, [replace(arm, changes=merge(baseline.changes, arm.changes)) for arm in arms]


def merge(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`changes` laid over `values`, tables within tables."""
    merged = dict(values)
    for key, change in changes.items():
        below = merged.get(key)
        merged[key] = merge(below, change) if isinstance(below, Mapping) and isinstance(change, Mapping) else change
    return merged


def _read_tables(file: Path) -> dict[str, Any]:
    try:
        tables = tomllib.loads(file.read_text("utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise RecipeError(f"{file} cannot be read ({error}).", "It is a TOML file with a table for each arm.") from None
    for name, table in tables.items():
        if not isinstance(table, dict):
            raise RecipeError(
                f"{file}: {name} is no table.", "An arm is a table, such as [hotter] pretrain.optimizer.muon_lr = 0.02"
            )
        if not name.strip():
            raise RecipeError(f"{file} has an arm without a name.")
    return tables


def _check_changes(arm: Arm) -> None:
    strange = sorted(set(arm.changes) - set(_CHANGEABLE))
    if strange:
        raise RecipeError(
            f"Arm {arm.name}: {strange[0]} cannot be changed in an experiment.",
            f"It trains the pre-training stage alone; what counts there: {', '.join(_CHANGEABLE)}.",
        )
    pretrain = arm.changes.get("pretrain")
    if isinstance(pretrain, Mapping) and {"steps", "share"} & set(pretrain):
        raise RecipeError(
            f"Arm {arm.name}: how long it is trained is not its own to say.", "Use --by and --budget, for all arms."
        )


def _short_names(keys: Sequence[str]) -> dict[str, str]:
    """A setting by its last word, unless that would be the name of two."""
    short = {key: _last_word(key) for key in keys}
    taken = [BASELINE, *short.values()]
    return {key: name if taken.count(name) == 1 else key for key, name in short.items()}


def _last_word(key: str) -> str:
    path, equals, value = key.partition("=")
    return f"{path.rsplit('.', 1)[-1].strip()}={value.strip()}" if equals else key


def _folder(key: str) -> str:
    """A name for a folder; with a hash where that is not the arm's own, so that no two are alike."""
    safe = re.sub(r"[^\w.=-]+", "-", key).strip(".-")[:80]
    return safe if safe == key and safe != BASELINE else f"{safe}-{fingerprint(key)[:6]}"
