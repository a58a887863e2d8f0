"""Texts for decoders that are not simply read from left to right: a prefix that is seen as a whole (Liu et al. 2018,
Raffel et al. 2020), and a middle that is written last (fill-in-the-middle, Bavarian et al. 2022).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import Tensor

from athanor.base.randomness import generator
from athanor.training.batches import IGNORED, Batch, lay_out
from athanor.training.drawn import Drawn, Pieces, SpecialTokens, plain_batch


@dataclass(frozen=True)
class PrefixBatch(Batch):
    """prefix: (rows, time) int64, 1 where a place is part of its document's prefix, which every place of it sees."""

    prefix: Tensor


class PlainTexts:
    """Pieces of documents as they are: every token is a target."""

    def __init__(self, pieces: Pieces, special: SpecialTokens) -> None:
        self.pieces, self.special = pieces, special
        self.lengths = pieces.lengths + 1

    def draw(self, index: int, epoch: int) -> Drawn:
        tokens = np.concatenate([[self.special.end], self.pieces[index], [self.special.end]])
        return {"tokens": tokens[:-1], "targets": tokens[1:]}

    def collate(self, drawn: Sequence[Drawn], rows: Sequence[Sequence[int]], length: int) -> Batch:
        return plain_batch(drawn, rows, length, self.special.end)


class PrefixTexts:
    """Pieces of documents with a prefix of any length, drawn anew each epoch; only what follows it is a target."""

    def __init__(self, pieces: Pieces, special: SpecialTokens, seed: int) -> None:
        self.pieces, self.special, self.seed = pieces, special, seed
        self.lengths = pieces.lengths + 1

    def draw(self, index: int, epoch: int) -> Drawn:
        tokens = np.concatenate([[self.special.end], self.pieces[index], [self.special.end]])
        size = int(generator(self.seed, "prefix", epoch, index).integers(1, len(tokens) - 1))
        targets = tokens[1:].copy()
        targets[: size - 1] = IGNORED
        return {"tokens": tokens[:-1], "targets": targets, "prefix": (np.arange(len(targets)) < size).astype(np.int64)}

    def collate(self, drawn: Sequence[Drawn], rows: Sequence[Sequence[int]], length: int) -> PrefixBatch:
        empty = {"tokens": self.special.end, "targets": IGNORED, "prefix": 0}
        return PrefixBatch(**lay_out(rows, length, lambda number: drawn[number], empty))


Order = Literal["prefix first", "suffix first"]


class Infilling:
    """Pieces of documents, the share `rate` of them cut into prefix, middle and suffix, the middle moved to the end;
    half of those as prefix, suffix, middle (PSM), half as suffix, prefix, middle (SPM). All tokens are targets.
    """

    def __init__(self, pieces: Pieces, special: SpecialTokens, seed: int, rate: float = 0.5) -> None:
        if not 0 <= rate <= 1:
            raise ValueError(f"rate = {rate} is not a share")
        self.pieces, self.special, self.seed, self.rate = pieces, special, seed, rate
        self.lengths = pieces.lengths + 4

    def draw(self, index: int, epoch: int) -> Drawn:
        random = generator(self.seed, "infilling", epoch, index)
        ids = self.pieces[index]
        if random.random() < self.rate:
            order: Order = "prefix first" if random.random() < 0.5 else "suffix first"
            cuts = np.sort(random.integers(0, len(ids) + 1, 2))
            ids = infill(ids, int(cuts[0]), int(cuts[1]), order, self.special)
        tokens = np.concatenate([[self.special.end], ids, [self.special.end]])
        return {"tokens": tokens[:-1], "targets": tokens[1:]}

    def collate(self, drawn: Sequence[Drawn], rows: Sequence[Sequence[int]], length: int) -> Batch:
        return plain_batch(drawn, rows, length, self.special.end)


def infill(ids: np.ndarray, start: int, stop: int, order: Order, special: SpecialTokens) -> np.ndarray:
    """The middle ids[start:stop] behind its surroundings, which a model completes by writing on.

    Suffix first is the variant that shares the tokens of prefix first: prefix-token suffix-token suffix middle-token
    prefix middle.
    """
    prefix, middle, suffix = ids[:start], ids[start:stop], ids[stop:]
    before, behind, last = ([token] for token in (special.prefix, special.suffix, special.middle))
    parts: tuple[Sequence[int] | np.ndarray, ...]
    if order == "prefix first":
        parts = (before, prefix, behind, suffix, last, middle)
    else:
        parts = (before, behind, suffix, last, prefix, middle)
    return np.concatenate([np.asarray(part, dtype=np.int64) for part in parts])
