"""A tiny model and tiny data to train it on, in a single thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from athanor.base.randomness import generator
from athanor.models.build import build
from athanor.models.config import AttentionConfig, LayerConfig, MlpConfig, ModelConfig
from athanor.models.decoder import Decoder
from athanor.training.batches import DocumentPieces, PackedBatches

VOCABULARY = 64


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def make_model() -> Callable[[int], Decoder]:
    config = ModelConfig(
        VOCABULARY, 16, 32, (LayerConfig(AttentionConfig(2, 1, 8, qk_norm="head"), MlpConfig(24)),) * 2
    )
    return lambda seed: build(config, seed)


@pytest.fixture
def make_batches() -> Callable[[], PackedBatches]:
    """Text with a pattern that can be learnt: each token is the one before it plus one or two."""
    documents = []
    for i in range(12):
        random = generator(1, "document", i)
        steps = random.integers(1, 3, int(random.integers(5, 60)))
        documents.append(np.append((random.integers(60) + np.cumsum(steps)) % 63 + 1, 0))
    tokens = np.concatenate(documents)
    offsets = np.concatenate([[0], np.cumsum([len(d) for d in documents])])
    return lambda: PackedBatches(DocumentPieces(tokens, offsets, 16, 0), 4, 16, seed=3, pad_id=0)
