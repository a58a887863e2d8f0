"""A model from a GGUF file, by way of its Hugging Face family."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch

from athanor.base.errors import ModelError
from athanor.models.build import empty
from athanor.models.decoder import Decoder
from athanor.models.folder import Weights, check_depth, read_weights
from athanor.models.gguf.architectures import architecture_of, config_of
from athanor.models.gguf.header import Header
from athanor.models.gguf.reader import GgufFile


def load_gguf(path: Path | str, dtype: torch.dtype | None = None) -> Decoder:
    """The model in the file. dtype: of its weights, by default fp32. Raises ModelError for what cannot be read."""
    return model_of(GgufFile(path), dtype)


def model_of(file: GgufFile, dtype: torch.dtype | None = None) -> Decoder:
    header = Header(file)
    try:
        config = config_of(header)
    except (TypeError, ValueError, AttributeError, ArithmeticError, LookupError) as error:
        raise ModelError(f"{file.path} has a value of the wrong kind ({error}).") from None
    weights = Weights(file.path, {name: partial(file.read, name) for name in file.tensors})
    check_depth(config, weights)
    model = empty(config)
    assert isinstance(model, Decoder)
    naming = architecture_of(header).naming(config, file.tensors)
    model.load_state_dict(read_weights(model, weights, naming, dtype or torch.float32), strict=True, assign=True)
    return model.eval()
