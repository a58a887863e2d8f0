"""How long building a batch takes, against a training step on it: 16 rows of 256 at 6 M parameters, 32 at 15 M, and the
batches of other objectives.

Times are the least of many: a busy machine adds to both, and to the shorter one more.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from _rows import row

from athanor.base.machine import measure, usable_cores
from athanor.models.build import count_parameters
from athanor.models.config import standard_config
from athanor.science.planner import measure_training
from athanor.tokenizer import train_tokenizer
from athanor.training.batches import DocumentPieces, PackedBatches
from athanor.training.pretraining import OBJECTIVES, Vocabulary

ISSUE = "C"
LENGTH, VOCABULARY, DOCUMENTS, BATCHES = 256, 8192, 20_000, 60
SIZES = ((256, 5, 16), (384, 6, 32))  # d_model, layers, rows
DRAWN = ("masked", "masked_pairs", "spans", "ul2", "infilling")


def rows() -> Iterator[dict[str, Any]]:
    torch.set_num_threads(usable_cores())
    tokens, offsets = _documents()
    for d_model, n_layers, n_rows in SIZES:
        config = standard_config(VOCABULARY, LENGTH, d_model=d_model, n_layers=n_layers)
        rate = measure_training(config, n_rows, LENGTH, measure().precision, micro_rows=16)
        source = PackedBatches(DocumentPieces(tokens, offsets, LENGTH, 0), n_rows, LENGTH, 1, pad_id=0)
        size = f"{count_parameters(config) / 1e6:.1f} M parameters"
        share = _seconds(source) / (n_rows * LENGTH / rate)
        yield row(f"building a batch, share of a step, {size}", share, "share", target=0.01, most=True)
    vocabulary = Vocabulary(train_tokenizer([" ".join(str(n) for n in range(5000))], 512))
    for objective in DRAWN:
        source = OBJECTIVES[objective].batches(tokens % 256, offsets, vocabulary, 16, LENGTH, 1)
        yield row(f"building a batch of 16 × {LENGTH}, {objective}", 1000 * _seconds(source), "ms")


def _documents() -> tuple[np.ndarray, np.ndarray]:
    """Of lengths as texts have them."""
    random = np.random.default_rng(0)
    sizes = np.clip(random.lognormal(5.3, 1.0, DOCUMENTS).astype(int), 8, 4000)
    offsets = np.concatenate([[0], sizes.cumsum()])
    return random.integers(0, VOCABULARY, offsets[-1]).astype(np.uint16), offsets


def _seconds(source: PackedBatches) -> float:
    source.next()  # packs a block of two million tokens
    found = []
    for _ in range(BATCHES):
        began = time.perf_counter()
        source.next()
        found.append(time.perf_counter() - began)
    return min(found)
