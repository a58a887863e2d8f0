"""Athanor: the whole life of a language model in one package."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from athanor.base.errors import AthanorError

if TYPE_CHECKING:
    from athanor.engine.classifier import load_classifier
    from athanor.engine.embedder import load_embedder
    from athanor.engine.language_model import load

__version__ = "0.1.0"
__all__ = ["AthanorError", "load", "load_classifier", "load_embedder"]

_LOADERS = {
    "load": "athanor.engine.language_model",
    "load_embedder": "athanor.engine.embedder",
    "load_classifier": "athanor.engine.classifier",
}


def __getattr__(name: str) -> Any:
    if name in _LOADERS:  # torch is imported only when a model is asked for
        from importlib import import_module

        from athanor.base.machine import prepare_process

        prepare_process()
        return getattr(import_module(_LOADERS[name]), name)
    raise AttributeError(f"module 'athanor' has no attribute {name!r}")
