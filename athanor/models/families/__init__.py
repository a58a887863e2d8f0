"""Families as data: how a Hugging Face `config.json` becomes a configuration and how its weights are named.

A family is a file here with a `FAMILY`; nothing else knows about it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from importlib import import_module
from math import isclose
from pkgutil import iter_modules
from typing import Any

from athanor.base.errors import ModelError
from athanor.models.config import EncoderDecoderConfig, ModelConfig
from athanor.models.families.family import Family
from athanor.models.families.keys import Keys

Config = ModelConfig | EncoderDecoderConfig


@cache
def families() -> dict[str, Family]:
    """All families by name."""
    found = {}
    for module in iter_modules(__path__):
        family = getattr(import_module(f"{__name__}.{module.name}"), "FAMILY", None)
        if family is not None:
            found[family.name] = family
    return found


def read_config(settings: Mapping[str, Any], place: str) -> tuple[Family, Config]:
    """Raises ModelError for an architecture or a setting that is not known."""
    listed = settings.get("architectures")
    names = [str(name) for name in listed] if isinstance(listed, list) else []
    published = families().get(str(settings.get("model_type")))
    if not names and published is not None and published.unnamed is not None:
        names = [published.unnamed]
    by_architecture = {name: family for family in families().values() for name in family.architectures}
    found = next((name for name in names if name in by_architecture), None)
    if found is None:
        raise ModelError(
            f"{place} names {', '.join(names) or 'no architecture'}.",
            f"Known architectures: {', '.join(sorted(by_architecture))}.",
        )
    keys = Keys(settings, place, found)
    try:
        config = by_architecture[found].read(keys)
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
        raise ModelError(f"{place} has a value of the wrong kind ({error}).") from None
    keys.finish()
    return by_architecture[found], config


def write_config(config: Config) -> dict[str, Any]:
    """What goes into `config.json`. Raises ModelError for a model that the family's settings cannot describe."""
    family = families().get(config.family)
    if family is None:
        raise ModelError(f"There is no family {config.family!r}.", f"Known: {', '.join(sorted(families()))}.")
    try:
        written = family.write(config)
    except (AssertionError, AttributeError, IndexError, KeyError, StopIteration, TypeError) as error:
        reason = str(error) or f"some part of it is not the family's ({', '.join(_parts(config))})"
        raise ModelError(f"This model cannot be written as one of the family {family.name}: {reason}.") from None
    written = {"architectures": [family.architectures[0]], "model_type": family.name, **written}
    _, again = read_config(written, f"What the family {family.name} writes of this model")
    for name, wanted, found in _differences(config, again):
        if name == "pooler" and found and isinstance(again, ModelConfig) and not again.next_sentence:
            continue  # whether a bare model has one, its weights say
        raise ModelError(
            f"The family {family.name} has no setting for {name} = {wanted!r}: it would be read as {found!r}.",
            "Change it, or name the family that computes this in the configuration.",
        )
    return written


def _parts(config: Config) -> list[str]:
    """The kinds of parts of its layers."""
    stacks = [config] if isinstance(config, ModelConfig) else [config.encoder, config.decoder]
    layers = [layer for stack in stacks for layer in stack.layers]
    return sorted({type(part).__name__ for layer in layers for part in vars(layer).values() if is_dataclass(part)})


def _differences(one: Any, other: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """The fields in which two configurations compute different things, by name."""
    if is_dataclass(one) and type(one) is type(other):
        for field in fields(one):
            if field.name != "family":  # the halves of an encoder–decoder need not name theirs
                inner = f"{name}.{field.name}" if name else field.name
                yield from _differences(getattr(one, field.name), getattr(other, field.name), inner)
    elif isinstance(one, tuple) and isinstance(other, tuple) and len(one) == len(other):
        for number, (here, there) in enumerate(zip(one, other, strict=True)):
            yield from _differences(here, there, f"{name}[{number}]")
    elif one != other and not (isinstance(one, float) and isinstance(other, float) and isclose(one, other)):
        yield name, one, other


__all__ = ["Config", "Family", "families", "read_config", "write_config"]
