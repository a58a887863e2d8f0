"""Where a run keeps what: the stages in their order and the files they leave."""

from __future__ import annotations

import re
from pathlib import Path

from athanor.base.errors import RecipeError
from athanor.base.run import RUNS

STAGES = ("corpus", "tokenizer", "shards", "pretrain", "classify", "sft", "rl", "control", "evaluate")
"""In the order of work; a user's MODEL is the last of MODEL_STAGES that is finished."""
MODEL_STAGES = ("pretrain", "sft", "rl")


def run_folder(name: str) -> Path:
    """runs/NAME. Raises RecipeError for a name that would lie elsewhere."""
    if not re.fullmatch(r"[\w][\w.-]*", name):
        raise RecipeError(
            f"A run cannot be named {name!r}.", "Use letters, digits, '-', '_' and '.'; it lives in ./runs."
        )
    return RUNS / name
