"""The kernels in C against llama.cpp: SmolLM2-135M-Instruct in four bits, the same file (Q4_0) for both, in turns.

One stream writing 64 tokens, a prompt of 512 tokens being read, and 16 streams together; a row's ratio is the median
over the turns. The packaged file (Q4_1) is read too, as `--format auto` has it: its blocks, and activations of 16 bits.
Then the share of the read bandwidth, measured in turns too, that writing reaches: bytes of weights a token times tokens
a second, in four formats, by a made-up model of 1 B parameters: a machine's last cache (480 MB where these were taken)
may hold smaller ones. `make peers` installs llama.cpp; without it our speeds are given alone.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch
from _decoding import BLOCKS, TURNS, against_llama_cpp, write
from _rows import row

from athanor.base.machine import measure, usable_cores
from athanor.engine.conversion import convert
from athanor.engine.locate import find_model
from athanor.engine.native_rung import NativeRung
from athanor.engine.rungs import open_rung
from athanor.models.build import build
from athanor.models.config import AttentionConfig, LayerConfig, MlpConfig, ModelConfig
from athanor.models.gguf.blocks import read_blocks
from athanor.models.gguf.load import load_gguf

ISSUE = "D"
TARGETS = {"read": 2.5, "write": 2.0, "streams": 2.0}
PACKAGED, TARGET_PACKAGED = "smollm2-135m-instruct", 4.0
SHARES = {"int4": 0.6, "int4, activations of 16 bits": 0.6, "int8": 0.75, "bf16": 0.8}
LARGE, TOKENS = LayerConfig(AttentionConfig(32, 8, 64), MlpConfig(8192)), 16


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
    rung = open_rung(model, "auto", file)
    rung.allocate(len(BLOCKS))
    yield from against_llama_cpp(rung, file, {"read": TARGET_PACKAGED}, " of the packaged file")
    del model, rung
    yield from shares_of_bandwidth()


def shares_of_bandwidth() -> Iterator[dict[str, Any]]:
    model = build(ModelConfig(32_000, 2048, 2048, (LARGE,) * 16), 0)
    for name, target in SHARES.items():
        form, _, wide = name.partition(", ")
        rung = NativeRung(model, form, wide=bool(wide))  # type: ignore[arg-type]
        rung.allocate(len(BLOCKS))
        write(rung, 1, TOKENS)
        turns = [(write(rung, 1, TOKENS), measure(0.5).read) for _ in range(TURNS)]
        speed = median(written for written, _ in turns)
        share = median(written * rung.weights.bytes_per_token / rate for written, rate in turns)
        yield row(f"share of read bandwidth, writing in {name} ({speed:.1f} tokens/s)", share, "", target=target)
