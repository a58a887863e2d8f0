"""Models: one configurable Transformer, built from small modules; families are data.

`load` and `save` read and write Hugging Face folders. To build by hand, put a `ModelConfig` together and give it to
`Decoder`, `Encoder` or, in pairs, to `EncoderDecoder`.
"""

from __future__ import annotations

from typing import Any

_WHERE = {
    "load": ("folder", "load_model"),
    "save": ("folder", "save_model"),
    "Cache": ("cache", "Cache"),
    "Decoder": ("decoder", "Decoder"),
    "Encoder": ("encoder", "Encoder"),
    "EncoderDecoder": ("encoder_decoder", "EncoderDecoder"),
}
__all__ = [*_WHERE]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'athanor.models' has no attribute {name!r}")
    from importlib import import_module

    module, attribute = _WHERE[name]
    return getattr(import_module(f"{__name__}.{module}"), attribute)
