"""Batches whose targets are distributions: the real next token, and what n-grams of the whole corpus say beside it.

The share of the n-grams is one until the learning rate falls, and falls with it: at the end only the text itself is
learnt.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from athanor.training.batches import Batch, Sequences
from athanor.training.ngrams import NGrams


@dataclass(frozen=True)
class SoftBatch(Batch):
    """words, weights: (rows, time, width) int64 and fp32, of each target, which is the last of them. Weights sum to
    one.
    """

    words: Tensor
    weights: Tensor


class Source(Protocol):
    """`PackedBatches` or `GrowingBatches`."""

    @property
    def sequences(self) -> Sequences: ...
    def next_rows(self) -> list[list[int]]: ...
    def next(self) -> Batch: ...
    def get_position(self) -> dict[str, Any]: ...
    def set_position(self, position: Mapping[str, Any]) -> None: ...


class SoftBatches:
    """The batches of `source` with soft targets. expected_places: what the whole run is expected to read; over its last
    part, `falling` of it, the share of the n-grams falls from one to zero.
    """

    def __init__(self, source: Source, ngrams: NGrams, expected_places: int, falling: float = 0.5) -> None:
        self.source, self.ngrams = source, ngrams
        self.expected_places, self.falling = max(1, expected_places), falling
        self.places = 0

    @property
    def share(self) -> float:
        """Of the n-grams in the next batch's targets."""
        left = 1 - self.places / self.expected_places
        return min(1.0, left / self.falling) if left > 0 and self.falling else float(left > 0)

    @property
    def sequences(self) -> Sequences:
        return self.source.sequences

    def next_rows(self) -> list[list[int]]:
        return self.source.next_rows()

    def next(self) -> Batch:
        share, batch = self.share, self.source.next()
        self.places += batch.n_places
        if share == 0:
            return batch
        read = [column.numpy() for column in (batch.tokens, batch.document_ids, batch.targets)]
        words, weights = self.ngrams.targets(*read)
        weights *= share
        weights[..., -1] += 1 - share
        columns: dict[str, Any] = {
            **batch.columns,
            "words": torch.from_numpy(words),
            "weights": torch.from_numpy(weights),
        }
        return SoftBatch(**columns, metrics={**batch.metrics, "ngram_share": share})

    def get_position(self) -> dict[str, Any]:
        return {"places": self.places, "source": self.source.get_position()}

    def set_position(self, position: Mapping[str, Any]) -> None:
        self.places = int(position["places"])
        self.source.set_position(position["source"])
