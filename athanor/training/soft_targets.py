"""Batches whose targets are distributions: the real next token, and what n-grams of the whole corpus say beside it.

The share of the n-grams falls with the tokens that were read, and with the learning rate: they are quick to teach what
is frequent, and in the way of a network that has learnt that (docs/lab.md). A model with an n-gram memory reads the
same beside its tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from athanor.models.ngram_memory import Followers
from athanor.models.ngrams import NGrams
from athanor.training.batches import Batch, Sequences

TAUGHT_TOKENS = 3_000_000  # after which n-grams teach nothing any longer (docs/lab.md)


@dataclass(frozen=True)
class SoftBatch(Batch):
    """What n-grams say (`NGrams.look_up_counted`). words: (rows, time, width) int64; shares: fp32 of that shape, for a
    memory; taught: likewise, the part of the targets that they are.
    """

    words: Tensor
    shares: Tensor
    taught: Tensor

    @property
    def followers(self) -> Followers:
        return Followers(self.words, self.shares)

    def labels(self, where: Tensor) -> tuple[Tensor, Tensor]:
        """Words (n, width + 1) and their weights, which sum to one, of the places `where` (rows, time) bool. The real
        token is the last.
        """
        weights = self.taught[where]
        rest = 1 - weights.sum(-1, keepdim=True)
        return torch.cat([self.words[where], self.targets[where][:, None]], 1), torch.cat([weights, rest], 1)


class PackedSource(Protocol):
    """`PackedBatches` or `GrowingBatches`."""

    @property
    def sequences(self) -> Sequences: ...
    def next_rows(self) -> list[list[int]]: ...
    def next(self) -> Batch: ...
    def get_position(self) -> dict[str, Any]: ...
    def set_position(self, position: Mapping[str, Any]) -> None: ...


class SoftBatches:
    """The batches of `source` with what n-grams say. teach: whether they are targets at all; their share of these falls
    (`follow`). remember: whether the model looks them up, so that it needs them to the end.
    """

    def __init__(self, source: PackedSource, ngrams: NGrams, *, teach: bool = True, remember: bool = False) -> None:
        self.source, self.ngrams, self.teach, self.remember = source, ngrams, teach, remember
        self.share = 1.0 if teach else 0.0  # of the n-grams in the next batch's targets

    def follow(self, left: float, tokens: int) -> None:
        self.share = left * max(0.0, 1 - tokens / TAUGHT_TOKENS) if self.teach else 0.0

    @property
    def sequences(self) -> Sequences:
        return self.source.sequences

    def next_rows(self) -> list[list[int]]:
        return self.source.next_rows()

    def next(self) -> Batch:
        share, batch = self.share, self.source.next()
        if share == 0 and not self.remember:
            return batch
        read = [column.numpy() for column in (batch.tokens, batch.document_ids, batch.targets)]
        words, shares, targets = self.ngrams.look_up_counted(*read)
        columns: dict[str, Any] = {
            **batch.columns,
            "words": torch.from_numpy(words),
            "shares": torch.from_numpy(shares),
            "taught": torch.from_numpy(targets * np.float32(share)),
        }
        return SoftBatch(**columns, metrics={**batch.metrics, "ngram_share": share})

    def get_position(self) -> dict[str, Any]:
        return {"source": self.source.get_position()}

    def set_position(self, position: Mapping[str, Any]) -> None:
        self.source.set_position(position["source"])
