"""Which sizes and words a configuration can have: what is no number, larger than any model's, or not a known word, is
refused with a sentence.
"""

from __future__ import annotations

from numbers import Integral
from typing import Any, get_args

from athanor.base.errors import ModelError

MOST_LAYERS, _LARGEST, _FARTHEST = 10_000, 1 << 31, 1e18  # beyond these a file is damaged or hostile


def positive(name: str, value: int) -> None:
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
        raise ModelError(f"{name} = {value!r} is not a positive whole number.")
    if value > (MOST_LAYERS if name == "n_layers" else _LARGEST):
        raise ModelError(f"{name} = {value} is larger than any model's.")


def positive_real(name: str, value: float) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < _FARTHEST:
        raise ModelError(f"{name} = {value!r} is not a positive number.")


def count(name: str, value: int) -> None:
    if value != 0:
        positive(name, value)


def word(name: str, value: object, known: Any) -> None:
    """known: a Literal. A word that is none of it would build another model than was meant."""
    if value not in get_args(known):
        raise ModelError(f"{name} = {value!r} is not known.", f"Known: {', '.join(get_args(known))}.")
