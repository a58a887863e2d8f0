"""Families as data: how a Hugging Face `config.json` becomes a configuration and how its weights are named.

A family is a file here with a `FAMILY`; nothing else knows about it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import import_module
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
    config = by_architecture[found].read(keys)
    keys.finish()
    return by_architecture[found], config


def write_config(config: Config) -> dict[str, Any]:
    """What goes into `config.json`."""
    family = families()[config.family]
    return {"architectures": [family.architectures[0]], "model_type": family.name, **family.write(config)}


__all__ = ["Config", "Family", "families", "read_config", "write_config"]
