"""Which rung executes a model, and in which number format.

The kernels in C where they are compiled and know the model's shape, torch's operations otherwise. Left to itself a
folder keeps the format of its weights; the blocks of a GGUF file are computed with as they are, with activations of 16
bits, and its other matrices as bf16.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Literal, get_args

import torch

from athanor.base.errors import ModelError
from athanor.base.progress import say
from athanor.engine.native.library import NativeError
from athanor.engine.native.packing import Format
from athanor.engine.native.weights import unsupported
from athanor.engine.native_rung import NativeRung
from athanor.engine.rung import Cache, Rung
from athanor.engine.source_rung import SourceRung
from athanor.engine.torch_rung import TorchRung
from athanor.models.decoder import Decoder
from athanor.models.encoder_decoder import EncoderDecoder
from athanor.models.gguf.blocks import read_blocks

WantedFormat = Literal["auto", "fp32", "bf16", "int8", "int4"]
_STORED: dict[torch.dtype, Format] = {torch.bfloat16: "bf16", torch.float16: "fp32", torch.float32: "fp32"}


def open_rung(
    model: Decoder | EncoderDecoder, form: WantedFormat = "auto", file: Path | None = None, cache: Cache = "auto"
) -> Rung:
    """file: the GGUF file that the model was read from, if it was. Its blocks are computed with but for "fp32" and
    "bf16", whatever their bits, for quantised twice they would be worth less; those of formats that no kernel knows are
    converted, and how much that changes is said. "int8" and "int4" round activations too. cache: of keys and
    values; "int8" takes half the memory.

    Raises ModelError for a format that this model cannot have here.
    """
    if form not in get_args(WantedFormat):
        raise ModelError(f"There is no number format {form!r}.", f"Accepted: {', '.join(get_args(WantedFormat))}.")
    if cache not in get_args(Cache):
        raise ModelError(f"There is no number format {cache!r} of keys and values.", "Accepted: auto, int8.")
    device = next(model.parameters()).device
    if isinstance(model, Decoder) and device.type == "cpu" and not unsupported(model.config):
        with suppress(NativeError):
            return _native(model, form, file, cache)
    if form in ("int8", "int4") and device.type != "cpu":
        raise ModelError(f"The format {form} is for processors, and the model is on {device}.", "Take bf16 or auto.")
    if file is not None and form in ("int8", "int4"):
        say(f"{file.name}: torch's operations do not know its blocks; numbers rounded there are rounded once more.")
    if isinstance(model, EncoderDecoder):
        return SourceRung(model, form, cache)
    return TorchRung(model, form, cache)


def rung_of(model: Decoder | EncoderDecoder, precision: str) -> Rung:
    """The fastest that computes no less exactly than training does. precision: of training's products. The kernels
    compute in fp32 whatever it is, which is faster than torch's products in bf16 at all sizes that are trained on a CPU
    (docs/lab.md).
    """
    if isinstance(model, Decoder) and next(model.parameters()).device.type == "cpu" and not unsupported(model.config):
        with suppress(NativeError):
            return NativeRung(model, "fp32")
    form = "auto" if precision == "fp32" else precision
    return SourceRung(model, form) if isinstance(model, EncoderDecoder) else TorchRung(model, form)


def _native(model: Decoder, form: WantedFormat, file: Path | None, cache: Cache) -> Rung:
    if file is None or form in ("fp32", "bf16"):
        return NativeRung(model, _STORED[next(model.parameters()).dtype] if form == "auto" else form, cache=cache)
    rung = NativeRung(
        model, "bf16" if form == "auto" else form, blocks=read_blocks(file, model), wide=form == "auto", cache=cache
    )
    if rung.conversions:
        say(f"{file.name}: matrices are converted, {', '.join(map(str, rung.conversions))}.")
    return rung
