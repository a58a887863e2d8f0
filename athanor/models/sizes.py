"""Which sizes a model can have: what is no whole number, or larger than any model's, is refused with a sentence."""

from __future__ import annotations

from numbers import Integral

from athanor.base.errors import ModelError

MOST_LAYERS, _LARGEST = 10_000, 1 << 31  # beyond these a file is damaged or hostile


def positive(name: str, value: int) -> None:
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
        raise ModelError(f"{name} = {value!r} is not a positive whole number.")
    if value > (MOST_LAYERS if name == "n_layers" else _LARGEST):
        raise ModelError(f"{name} = {value} is larger than any model's.")


def count(name: str, value: int) -> None:
    if value != 0:
        positive(name, value)
