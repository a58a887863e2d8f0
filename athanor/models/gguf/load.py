"""A model from a GGUF file, by way of its Hugging Face family."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from athanor.base.errors import ModelError
from athanor.models.build import empty
from athanor.models.decoder import Decoder
from athanor.models.families import read_config
from athanor.models.folder import Weights, check_depth, read_weights
from athanor.models.gguf.architectures import ARCHITECTURES, settings_of, their_name, unpermuted
from athanor.models.gguf.reader import GgufFile

_NO_WEIGHTS = ("rope_freqs.weight",)


def load_gguf(path: Path | str, dtype: torch.dtype | None = None) -> Decoder:
    """The model in the file. dtype: of its weights, by default fp32. Raises ModelError for what cannot be read."""
    return model_of(GgufFile(path), dtype)


def model_of(file: GgufFile, dtype: torch.dtype | None = None) -> Decoder:
    place = str(file.path)
    try:
        settings = settings_of(file.metadata, file.tensors, place)
        family, config = read_config(settings, place)
    except (TypeError, ValueError, AttributeError, ZeroDivisionError, OverflowError) as error:
        raise ModelError(f"{place} has a value of the wrong kind ({error}).") from None
    weights = Weights(file.path, {})
    for name in file.tensors:
        theirs = their_name(name)
        if theirs is None and name not in _NO_WEIGHTS:
            raise ModelError(f"{place} holds the tensor {name}, which a model of its kind does not have.")
        if theirs is not None:
            weights.get[theirs] = partial(_read, file, name, settings)
    check_depth(config, weights)
    model = empty(config)
    assert isinstance(model, Decoder)
    state = read_weights(model, weights, family, dtype or torch.float32)
    model.load_state_dict(state, strict=True, assign=True)
    return model.eval()


def _read(file: GgufFile, name: str, settings: dict[str, Any]) -> Tensor:
    tensor = file.read(name)
    if not ARCHITECTURES[file.metadata["general.architecture"]].permuted:
        return tensor
    heads = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}.get(name.split(".")[-2])
    return tensor if heads is None else unpermuted(tensor, settings[heads])
