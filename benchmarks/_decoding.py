"""Reading and writing on a rung, and the same asked of llama.cpp, in turns."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from _llama_cpp import READ, STREAMED, STREAMS, WRITTEN
from _rows import row

from athanor.base.machine import usable_cores
from athanor.engine.rung import Rung, Segment

TURNS = 11
PEER = Path(".peers", "llama-cpp", "bin", "python")
WHAT = {"read": f"reading {READ} tokens", "write": "writing, one stream", "streams": f"writing, {STREAMS} streams"}
IDS = np.arange(100, 100 + READ, dtype=np.int32)
BLOCKS = np.arange(READ // 16, dtype=np.int32)


def against_llama_cpp(rung: Rung, file: Path, targets: dict[str, float], of: str = "") -> Iterator[dict[str, Any]]:
    ours: dict[str, Callable[[], float]] = {
        "read": lambda: read(rung),
        "write": lambda: write(rung, 1, WRITTEN),
        "streams": lambda: write(rung, STREAMS, STREAMED),
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


def read(rung: Rung) -> float:
    start = time.perf_counter()
    rung.forward([Segment(IDS, 0, BLOCKS, 1)])
    return READ / (time.perf_counter() - start)


def write(rung: Rung, streams: int, count: int) -> float:
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
