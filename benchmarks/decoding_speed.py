"""The kernels in C against llama.cpp: SmolLM2-135M-Instruct in four bits, the same file (Q4_0) for both, in turns.

One stream writing 64 tokens, a prompt of 512 tokens being read, and 16 streams together; a row's ratio is the median
over the turns. The packaged file (Q4_1) is read too, as `--format auto` has it: its blocks, and activations of 16 bits.
Then the share of the read bandwidth, measured in turns too, that writing reaches: bytes of weights a token times tokens
a second, in four formats. `make peers` installs llama.cpp; without it our speeds are given alone.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch
from _decoding import BLOCKS, TURNS, against_llama_cpp, write
from _llama_cpp import WRITTEN
from _rows import row

from athanor.base.machine import measure, usable_cores
from athanor.engine.conversion import convert
from athanor.engine.locate import find_model
from athanor.engine.native_rung import NativeRung
from athanor.engine.rungs import open_rung
from athanor.models.decoder import Decoder
from athanor.models.gguf.blocks import read_blocks
from athanor.models.gguf.load import load_gguf

ISSUE = "D"
TARGETS = {"read": 2.5, "write": 2.0, "streams": 2.0}
PACKAGED, TARGET_PACKAGED = "smollm2-135m-instruct", 4.0
SHARES = {"int4": 0.6, "int8": 0.75, "bf16": 0.8, "auto": 0.6}


def rows() -> Iterator[dict[str, Any]]:
    torch.set_num_threads(usable_cores())
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "m.gguf"
        convert(PACKAGED, file, "gguf", "Q4_0")
        model = load_gguf(file)
        rung = NativeRung(model, "int8", blocks=read_blocks(file, model))
        rung.allocate(len(BLOCKS) * 2)
        yield from against_llama_cpp(rung, file, TARGETS)
    file = find_model(PACKAGED)
    model = load_gguf(file)
    rung = _opened(model, "auto", file)
    yield from against_llama_cpp(rung, file, {"read": TARGET_PACKAGED}, " of the packaged file")
    for form, target in SHARES.items():
        rung = _opened(model, form, file if form == "auto" else None)
        turns = [(write(rung, 1, WRITTEN), measure(0.5).read) for _ in range(TURNS)]
        speed = median(written for written, _ in turns)
        share = median(written * rung.weights.bytes_per_token / rate for written, rate in turns)
        yield row(f"share of read bandwidth, writing in {form} ({speed:.0f} tokens/s)", share, "", target=target)


def _opened(model: Decoder, form: str, file: Path | None) -> NativeRung:
    rung = open_rung(model, form, file)  # type: ignore[arg-type]
    assert isinstance(rung, NativeRung)
    rung.allocate(len(BLOCKS))
    return rung
