"""What a family is: two functions between `config.json` and our configuration, and the names of its weights."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from athanor.models.families.keys import Keys
from athanor.models.families.weights import Naming, Rule

# As BERT's first folders, and some of its heirs', call the weights of norms.
FIRST_NAMES = ((r"LayerNorm\.gamma$", "LayerNorm.weight"), (r"LayerNorm\.beta$", "LayerNorm.bias"))


@dataclass(frozen=True)
class Family:
    """name: `model_type` in config.json. architectures: the names under `architectures`, the one written first.

    prefix: what all names on disk begin with but for a head's, and what a folder of the bare model lacks. unused:
    patterns of names on disk that are no weights of ours (buffers, copies of tied matrices). renamed: patterns of other
    names that weights have on disk, and the present ones. unnamed: the architecture of a config.json that names none,
    for families that are published so. portable: whether other programs compute it.
    """

    name: str
    architectures: tuple[str, ...]
    read: Callable[[Keys], Any]
    write: Callable[[Any], dict[str, Any]]
    rules: Callable[[Any], list[Rule]]
    prefix: str = "model."
    unused: tuple[str, ...] = (r".*rotary_emb\.inv_freq", r"lm_head\.weight")
    renamed: tuple[tuple[str, str], ...] = FIRST_NAMES
    unnamed: str | None = None
    portable: bool = True

    def naming(self, config: Any) -> Naming:
        return Naming(self.architectures[0], self.rules(config), self.prefix, self.unused)

    def present_name(self, name: str) -> str:
        for pattern, present in self.renamed:
            name = re.sub(pattern, present, name)
        return name
