"""What a family is: two functions between `config.json` and our configuration, and the names of its weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from athanor.models.families.keys import Keys
from athanor.models.families.weights import Rule


@dataclass(frozen=True)
class Family:
    """name: `model_type` in config.json. architectures: the names under `architectures`, the one written first.

    prefix: what all names on disk begin with but for a head's, and what a folder of the bare model lacks. unused:
    patterns of names on disk that are no weights of ours (buffers, copies of tied matrices).
    """

    name: str
    architectures: tuple[str, ...]
    read: Callable[[Keys], Any]
    write: Callable[[Any], dict[str, Any]]
    rules: Callable[[Any], list[Rule]]
    prefix: str = "model."
    unused: tuple[str, ...] = (r".*rotary_emb\.inv_freq", r"lm_head\.weight")
