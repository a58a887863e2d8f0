"""Which rung executes a model, and in which number format.

The kernels in C where they are compiled and know the model's shape, torch's operations otherwise. Left to itself a
folder keeps the format of its weights, and what a GGUF file has in blocks is computed with as bf16: with the blocks
themselves, activations are rounded to 8 bits.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Literal, get_args

import torch

from athanor.base.errors import ModelError
from athanor.engine.native.library import NativeError
from athanor.engine.native.packing import Format
from athanor.engine.native.weights import unsupported
from athanor.engine.native_rung import NativeRung
from athanor.engine.rung import Rung
from athanor.engine.source_rung import SourceRung
from athanor.engine.torch_rung import TorchRung
from athanor.models.decoder import Decoder
from athanor.models.encoder_decoder import EncoderDecoder
from athanor.models.gguf.blocks import read_blocks

WantedFormat = Literal["auto", "fp32", "bf16", "int8", "int4"]
_STORED: dict[torch.dtype, Format] = {torch.bfloat16: "bf16", torch.float16: "fp32", torch.float32: "fp32"}


def open_rung(model: Decoder | EncoderDecoder, form: WantedFormat = "auto", file: Path | None = None) -> Rung:
    """file: the GGUF file that the model was read from, if it was; for "int8" and "int4" its blocks are taken as they
    are, whatever their bits, for quantised twice they would be worth less.

    Raises ModelError for a format that this model cannot have here.
    """
    if form not in get_args(WantedFormat):
        raise ModelError(f"There is no number format {form!r}.", f"Accepted: {', '.join(get_args(WantedFormat))}.")
    device = next(model.parameters()).device
    reason = f"it is on {device}"
    if isinstance(model, EncoderDecoder):
        reason = "it is an encoder and a decoder"
    elif device.type == "cpu":
        reason = unsupported(model.config)
    if not reason and isinstance(model, Decoder):
        try:
            return _native(model, form, file)
        except NativeError as error:
            reason = error.message
    if form in ("int8", "int4"):
        raise ModelError(
            f"The format {form} needs the kernels in C, which cannot execute this model here: {reason}.",
            "Take bf16, fp32 or auto.",
        )
    precision = "fp32" if form == "auto" else form
    return SourceRung(model, precision) if isinstance(model, EncoderDecoder) else TorchRung(model, precision)


def rung_of(model: Decoder | EncoderDecoder, precision: str) -> Rung:
    """The fastest that computes as training does. precision: of training's products; only fp32 is that of a rung of
    the kernels, for bf16 weights alone would be another thing than `autocast`.
    """
    if isinstance(model, EncoderDecoder):
        return SourceRung(model, precision)
    if precision == "fp32" and next(model.parameters()).device.type == "cpu" and not unsupported(model.config):
        with suppress(NativeError):
            return NativeRung(model, "fp32")
    return TorchRung(model, precision)


def _native(model: Decoder, form: WantedFormat, file: Path | None) -> Rung:
    if form == "auto":
        return NativeRung(model, _STORED[next(model.parameters()).dtype] if file is None else "bf16")
    blocks = read_blocks(file, model) if file is not None and form in ("int8", "int4") else {}
    return NativeRung(model, form, blocks=blocks)
