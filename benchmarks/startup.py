"""How long a person waits: for help, and for the first prompt of a chat."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from _rows import row

from athanor.models.build import build, count_parameters
from athanor.models.config import standard_config
from athanor.models.folder import save_model
from athanor.tokenizer import train_tokenizer

ISSUE = "A"
REPEATS = 7


def rows() -> Iterator[dict[str, Any]]:
    for verb in ((), ("run",), ("chat",)):
        yield measured(f"athanor {' '.join((*verb, '--help'))}", (*verb, "--help"), 0.5)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = train_tokenizer(["a model for measuring how long it takes to start"], 8192)
        config = standard_config(8192, 1024, d_model=384, n_layers=8)
        ids = {"end_of_text_id": tokenizer.end_of_text_id, "stop_ids": tokenizer.stop_ids}
        save_model(build(config, 0), folder, **ids, lineage={})
        tokenizer.save(Path(folder))
        yield measured(
            f"athanor chat, to its prompt and back ({count_parameters(config) / 1e6:.0f} M)", ("chat", folder), 4.0
        )


def measured(metric: str, arguments: tuple[str, ...], target: float) -> dict[str, Any]:
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "athanor.cli.main", *arguments], input=b"", capture_output=True, check=True
        )
        seconds.append(time.perf_counter() - start)
    return row(metric, median(seconds), "s", target=target, most=True)
