"""The kernels in C against llama.cpp: SmolLM2-135M-Instruct in four bits, the same file (Q4_0) for both, in turns.

One stream writing 64 tokens, a prompt of 512 tokens being read, and 16 streams together; a row's ratio is the median
over the turns. The packaged file (Q4_1) is read too, as `--format auto` has it: its blocks, and activations of 16 bits.
Then the share of the read bandwidth, measured in turns too, that writing reaches: bytes of weights a token times tokens
a second, in four formats. `make peers` installs llama.cpp; without it our speeds are given alone.
"""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from _llama_cpp import READ, STREAMED, STREAMS, WRITTEN
from _rows import row

from athanor.base.machine import measure, usable_cores
from athanor.engine.conversion import convert
from athanor.engine.locate import find_model
from athanor.engine.native_rung import NativeRung
from athanor.engine.rung import Segment
from athanor.engine.rungs import open_rung
from athanor.models.decoder import Decoder
from athanor.models.gguf.blocks import read_blocks
from athanor.models.gguf.load import load_gguf

ISSUE = "D"
TURNS = 7
PEER = Path(".peers", "llama-cpp", "bin", "python")
TARGETS = {"read": 2.5, "write": 2.0, "streams": 2.0}
PACKAGED, TARGET_PACKAGED = "smollm2-135m-instruct", 4.0
SHARES = {"int4": 0.6, "int8": 0.75, "bf16": 0.8, "auto": 0.6}
WHAT = {"read": f"reading {READ} tokens", "write": "writing, one stream", "streams": f"writing, {STREAMS} streams"}
IDS = np.arange(100, 100 + READ, dtype=np.int32)
BLOCKS = np.arange(READ // 16, dtype=np.int32)


def rows() -> Iterator[dict[str, Any]]:
    torch.set_num_threads(usable_cores())
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "m.gguf"
        convert(PACKAGED, file, "gguf", "Q4_0")
        model = load_gguf(file)
        rung = NativeRung(model, "int8", blocks=read_blocks(file, model))
        rung.allocate(len(BLOCKS) * 2)
        yield from _against_the_peer(rung, file, TARGETS)
    file = find_model(PACKAGED)
    model = load_gguf(file)
    rung = _opened(model, "auto", file)
    yield from _against_the_peer(rung, file, {"read": TARGET_PACKAGED}, " of the packaged file")
    for form, target in SHARES.items():
        rung = _opened(model, form, file if form == "auto" else None)
        turns = [(_write(rung, 1, WRITTEN), measure(0.5).read) for _ in range(TURNS)]
        speed = median(written for written, _ in turns)
        share = median(written * rung.weights.bytes_per_token / rate for written, rate in turns)
        yield row(f"share of read bandwidth, writing in {form} ({speed:.0f} tokens/s)", share, "", target=target)


def _opened(model: Decoder, form: str, file: Path | None) -> NativeRung:
    rung = open_rung(model, form, file)  # type: ignore[arg-type]
    assert isinstance(rung, NativeRung)
    rung.allocate(len(BLOCKS))
    return rung


def _against_the_peer(
    rung: NativeRung, file: Path, targets: dict[str, float], of: str = ""
) -> Iterator[dict[str, Any]]:
    ours: dict[str, Callable[[], float]] = {
        "read": lambda: _read(rung),
        "write": lambda: _write(rung, 1, WRITTEN),
        "streams": lambda: _write(rung, STREAMS, STREAMED),
    }
    peer = _start(file)
    for what, target in targets.items():
        run = ours[what]
        run()
        theirs = _ask(peer, what) if peer else None
        speeds = [(run(), _ask(peer, what) if peer else None) for _ in range(TURNS)]
        speed = median(mine for mine, _ in speeds)
        if theirs is None:
            yield row(f"{WHAT[what]}{of}", speed, "tokens/s")
            continue
        ratio = median(mine / their for mine, their in speeds if their)
        theirs = median(their for _, their in speeds if their)
        found = row(f"{WHAT[what]}{of}, against llama.cpp", speed, "tokens/s", target=target, peer=theirs)
        yield {**found, "ratio": ratio, "met": ratio >= target}
    if peer:
        peer.kill()


def _read(rung: NativeRung) -> float:
    start = time.perf_counter()
    rung.forward([Segment(IDS, 0, BLOCKS, 1)])
    return READ / (time.perf_counter() - start)


def _write(rung: NativeRung, streams: int, count: int) -> float:
    """Tokens a second of so many sequences from their beginning, together."""
    each = -(-count // 16)
    start = time.perf_counter()
    for i in range(count):
        rung.forward([Segment(IDS[i : i + 1], i, BLOCKS[each * s : each * s + i // 16 + 1], 1) for s in range(streams)])
    return streams * count / (time.perf_counter() - start)


def _start(file: Path) -> subprocess.Popen[str] | None:
    if not PEER.exists():
        return None
    command = [PEER, Path(__file__).with_name("_llama_cpp.py"), file, str(usable_cores())]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )


def _ask(peer: subprocess.Popen[str], what: str) -> float:
    assert peer.stdin is not None
    assert peer.stdout is not None
    peer.stdin.write(f"{what}\n")
    peer.stdin.flush()
    return float(peer.stdout.readline())
