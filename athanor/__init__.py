"""Athanor: the whole life of a language model in one package."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from athanor.base.errors import AthanorError

if TYPE_CHECKING:
    from athanor.engine.language_model import load

__version__ = "0.1.0"
__all__ = ["AthanorError", "load"]


def __getattr__(name: str) -> Any:
    if name == "load":  # torch is imported only when a model is asked for
        from athanor.base.machine import prepare_process

        prepare_process()
        from athanor.engine.language_model import load

        return load
    raise AttributeError(f"module 'athanor' has no attribute {name!r}")
