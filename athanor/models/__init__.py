"""Models: one configurable Transformer, built from small modules; families are data.

`load` and `save` read and write Hugging Face folders. To build by hand, put a `ModelConfig` or an
`EncoderDecoderConfig` together and give it to `new`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from athanor.models.config import (
    AttentionConfig,
    ConvolutionConfig,
    EmbeddingConfig,
    EncoderDecoderConfig,
    HeadConfig,
    LatentAttentionConfig,
    LayerConfig,
    MlpConfig,
    ModelConfig,
    MoeConfig,
    NormConfig,
    standard_config,
)
from athanor.models.position_config import Alibi, Disentangled, RelativeBias, RopeConfig, RopeScaling

if TYPE_CHECKING:  # the others import torch, and only when they are asked for
    from athanor.models.build import count_parameters, new
    from athanor.models.cache import Cache
    from athanor.models.decoder import Decoder
    from athanor.models.encoder import Encoder
    from athanor.models.encoder_decoder import EncoderDecoder
    from athanor.models.folder import load_model as load
    from athanor.models.folder import save_model as save

_WHERE = {
    "load": ("folder", "load_model"),
    "save": ("folder", "save_model"),
    "new": ("build", "new"),
    "count_parameters": ("build", "count_parameters"),
    "Cache": ("cache", "Cache"),
    "Decoder": ("decoder", "Decoder"),
    "Encoder": ("encoder", "Encoder"),
    "EncoderDecoder": ("encoder_decoder", "EncoderDecoder"),
}
__all__ = [
    "Alibi", "AttentionConfig", "Cache", "ConvolutionConfig", "Decoder", "Disentangled", "EmbeddingConfig", "Encoder",
    "EncoderDecoder", "EncoderDecoderConfig", "HeadConfig", "LatentAttentionConfig", "LayerConfig", "MlpConfig",
    "ModelConfig", "MoeConfig", "NormConfig", "RelativeBias", "RopeConfig", "RopeScaling", "count_parameters", "load",
    "new", "save", "standard_config",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'athanor.models' has no attribute {name!r}")
    from importlib import import_module

    module, attribute = _WHERE[name]
    return getattr(import_module(f"{__name__}.{module}"), attribute)


def __dir__() -> list[str]:
    return __all__
