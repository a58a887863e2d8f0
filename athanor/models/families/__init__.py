"""Families as data: how a Hugging Face `config.json` becomes a `ModelConfig` and how its weights are named."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from athanor.base.errors import ModelError
from athanor.models.config import ModelConfig
from athanor.models.families import qwen3


@dataclass(frozen=True)
class Family:
    """architecture: the name in `config.json`. weight_name: our parameter's name → the name on disk."""

    architecture: str
    read_config: Callable[[Mapping[str, Any]], ModelConfig]
    write_config: Callable[[ModelConfig], dict[str, Any]]
    weight_name: Callable[[str], str]


FAMILIES = {
    qwen3.ARCHITECTURE: Family(qwen3.ARCHITECTURE, qwen3.read_config, qwen3.write_config, qwen3.weight_name),
}


def family_of(config: Mapping[str, Any], place: str) -> Family:
    """Raises ModelError for an architecture that is not known."""
    listed = config.get("architectures")
    names = [str(name) for name in listed] if isinstance(listed, list) else []
    for architecture in names:
        if architecture in FAMILIES:
            return FAMILIES[architecture]
    named = ", ".join(names) or "no architecture"
    raise ModelError(f"{place} names {named}.", f"Known architectures: {', '.join(FAMILIES)}.")
