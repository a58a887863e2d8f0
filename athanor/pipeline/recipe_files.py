"""Recipes as TOML: read, overridden, and checked key by key.

An unknown key is an error that names the nearest one there is.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from athanor.base.errors import RecipeError
from athanor.pipeline.recipe import Recipe
from athanor.pipeline.recipe_checks import check


def shipped_recipes() -> list[str]:
    return sorted(
        p.name.removesuffix(".toml")
        for p in (resources.files(__package__) / "recipes").iterdir()
        if p.name.endswith(".toml")
    )


def load_recipe(name: str | Path, overrides: Sequence[str] = (), **settings: Any) -> Recipe:
    """The recipe of this name (a shipped one, or a .toml file) with "a.b=value" overrides and top-level settings.

    Raises RecipeError, naming the key and what would be accepted.
    """
    values = read_settings(name)
    for change in overrides:
        override(values, change)
    return make_recipe(values | {key: value for key, value in settings.items() if value is not None})


def make_recipe(values: Mapping[str, Any]) -> Recipe:
    """Raises RecipeError, naming the key and what would be accepted."""
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        raise explain(error, Recipe, "The recipe") from None
    check(recipe)
    return recipe


def read_settings(name: str | Path) -> dict[str, Any]:
    """What the recipe of this name says, unchecked."""
    path = Path(name)
    try:
        if str(name) in shipped_recipes():
            text = (resources.files(__package__) / "recipes" / f"{name}.toml").read_text("utf-8")
        elif path.suffix == ".toml" and path.is_file():
            text = path.read_text("utf-8-sig")
        else:
            near = difflib.get_close_matches(str(name), shipped_recipes(), 1)
            meant = f"Did you mean {near[0]!r}? " if near else ""
            raise RecipeError(
                f"There is no recipe {str(name)!r}.",
                f"{meant}Shipped: {', '.join(shipped_recipes())}; or give a .toml file.",
            )
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{name} cannot be read ({error}).", "A recipe is a TOML file in UTF-8.") from None
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise RecipeError(f"{name} is not valid TOML: {error}.") from None


def override(values: dict[str, Any], change: str) -> None:
    """Sets what a change like "a.b=value" says."""
    path, equals, text = change.partition("=")
    keys = [key.strip() for key in path.split(".")]
    if not equals or not all(keys):
        raise RecipeError(f"--set {change!r} cannot be read.", "Write it like --set pretrain.steps=200.")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        value = text.strip()
    for key in keys[:-1]:
        values = values.setdefault(key, {})
        if not isinstance(values, dict):
            raise RecipeError(
                f"--set {change!r}: {key} has no settings of its own.",
                "Where its value is short for one of them, write that in full, as in classify.label=topic.",
            )
    values[keys[-1]] = value


def explain(error: ValidationError, whole: type[BaseModel], what: str) -> RecipeError:
    """The first thing that is wrong with `what`, a file that should be a `whole`, as a sentence that names the key."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        known = _known_keys(whole, first["loc"][:-1])
        near = difflib.get_close_matches(str(first["loc"][-1]), known, 1, 0.5)
        meant = f"Did you mean {near[0]!r}? " if near else ""
        return RecipeError(f"{what} has an unknown key {place!r}.", f"{meant}Known there: {', '.join(known)}.")
    if first["type"] == "missing":
        return RecipeError(f"{what} lacks {place}.")
    reason = first["msg"].removeprefix("Value error, ")
    if not place:
        return RecipeError(f"{what} cannot be used: {reason}.")
    value = "" if isinstance(first["input"], dict) else f" = {_short(first['input'])}"
    return RecipeError(f"{what}'s {place}{value} cannot be used.", f"{reason[0].upper()}{reason[1:]}.")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _known_keys(section: type[BaseModel], path: Sequence[Any]) -> list[str]:
    for key in path:
        annotation: Any = section.model_fields[key].annotation
        kinds = [kind for kind in (annotation, *get_args(annotation)) if isinstance(kind, type)]
        inner = [kind for kind in kinds if issubclass(kind, BaseModel)]
        if not inner:
            return []
        section = inner[0]
    return sorted(section.model_fields)
