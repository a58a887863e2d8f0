"""Texts with hidden spans for encoder–decoders: T5's span corruption (Raffel et al. 2020) and UL2's mixture of
denoisers (Tay et al. 2022).

Hidden spans become sentinels in the source; the target says after each sentinel what stood there, and ends. Deviation:
sources and targets are packed, each target sees its own source alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from athanor.base.randomness import generator
from athanor.training.batches import IGNORED, Batch, lay_out
from athanor.training.drawn import Drawn, Pieces, SpecialTokens

_REGULAR, _SEQUENTIAL, _EXTREME = range(3)  # numbers of SpecialTokens.modes


@dataclass(frozen=True)
class SourceTargetBatch(Batch):
    """tokens: what the decoder is given, its targets one place later. source and its columns: (rows, time') int64; a
    document has the same number on both sides.
    """

    source: Tensor
    source_document_ids: Tensor
    source_positions: Tensor

    @property
    def n_places(self) -> int:
        return self.tokens.numel() + self.source.numel()


@dataclass(frozen=True)
class Denoiser:
    """rate: part of the tokens that is hidden. span: mean length of a hidden span, None for one span at the end.
    mode: of `SpecialTokens.modes`, put before the source; None for no such token.
    """

    rate: float
    span: float | None
    mode: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.rate < 1 or (self.span is not None and self.span < 1):
            raise ValueError(f"{self}: the rate lies between 0 and 1, spans have at least one token")


T5 = (Denoiser(0.15, 3.0),)
UL2 = (
    Denoiser(0.15, 3.0, _REGULAR),
    Denoiser(0.15, 8.0, _REGULAR),
    Denoiser(0.25, None, _SEQUENTIAL),
    Denoiser(0.5, 3.0, _EXTREME),
    Denoiser(0.5, 8.0, _EXTREME),
    Denoiser(0.15, 64.0, _EXTREME),
    Denoiser(0.5, 64.0, _EXTREME),
)


class CorruptedTexts:
    """Pieces of documents, each corrupted by one of the denoisers, drawn anew each epoch.

    start_id: what the decoder begins with (`EncoderDecoderConfig.start_id`).
    """

    def __init__(
        self, pieces: Pieces, special: SpecialTokens, denoisers: Sequence[Denoiser], start_id: int, seed: int
    ) -> None:
        self.pieces, self.special, self.denoisers = pieces, special, tuple(denoisers)
        self.start_id, self.seed = start_id, seed
        self.lengths = pieces.lengths + 2  # what is hidden is never shorter than its sentinel; the mode and the end

    def draw(self, index: int, epoch: int) -> Drawn:
        random = generator(self.seed, "spans", epoch, index)
        denoiser = self.denoisers[int(random.integers(len(self.denoisers)))]
        ids = self.pieces[index]
        hidden = hidden_spans(len(ids), denoiser, len(self.special.sentinels), random)
        source, target = corrupt(ids, hidden, self.special.sentinels)
        mode = [] if denoiser.mode is None else [self.special.modes[denoiser.mode]]
        source = np.concatenate([mode, source, [self.special.end]]).astype(np.int64)
        target = np.append(target, self.special.end)
        return {"source": source, "tokens": np.append(self.start_id, target[:-1]), "targets": target}

    def collate(self, drawn: Sequence[Drawn], rows: Sequence[Sequence[int]], length: int) -> SourceTargetBatch:
        return source_target_batch(drawn, rows, self.special.end)


def source_target_batch(drawn: Sequence[Drawn], rows: Sequence[Sequence[int]], end: int) -> SourceTargetBatch:
    """Of drawn columns source, tokens and targets. end: stands where nothing else does."""
    sources = _columns(drawn, rows, {"source": end})
    names = {"document_ids": "source_document_ids", "positions": "source_positions"}
    sources = {names.get(name, name): column for name, column in sources.items()}
    return SourceTargetBatch(**_columns(drawn, rows, {"tokens": end, "targets": IGNORED}), **sources)


def _columns(drawn: Sequence[Drawn], rows: Sequence[Sequence[int]], empty: Mapping[str, int]) -> dict[str, Any]:
    """Some columns in rows just as long as the fullest: sources and targets are of different lengths."""
    first = next(iter(empty))
    width = max(sum(len(drawn[number][first]) for number in row) for row in rows)
    return lay_out(rows, width, lambda number: {name: drawn[number][name] for name in empty}, dict(empty))


def hidden_spans(length: int, denoiser: Denoiser, most_spans: int, random: np.random.Generator) -> np.ndarray:
    """(length,) bool: T5's way: the number of hidden tokens and of spans is fixed, their lengths are random; a text
    begins with a token that is not hidden. length: at least 2.
    """
    n_hidden = min(max(1, round(length * denoiser.rate)), length - 1)
    mask = np.zeros(length, dtype=bool)
    if denoiser.span is None:
        mask[length - n_hidden :] = True
        return mask
    n_spans = min(max(1, round(n_hidden / denoiser.span)), most_spans, length - n_hidden)
    hidden, shown = _parts(n_hidden, n_spans, random), _parts(length - n_hidden, n_spans, random)
    lengths = np.stack([shown, hidden], axis=1).flatten()
    return np.repeat(np.arange(2 * n_spans) % 2 == 1, lengths)


def _parts(total: int, parts: int, random: np.random.Generator) -> np.ndarray:
    """(parts,) random sizes of at least one that add up to the total, every way to do so equally likely."""
    cuts = np.sort(random.choice(total - 1, parts - 1, replace=False)) + 1
    return np.diff(cuts, prepend=0, append=total)


def corrupt(ids: np.ndarray, hidden: np.ndarray, sentinels: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Source and target: each run of hidden tokens is one sentinel in the source, each run of others one in the
    target; the n-th of the one and the n-th of the other are the same, if the text begins with what is shown.
    """
    return _with_sentinels(ids, hidden, sentinels), _with_sentinels(ids, ~hidden, sentinels)


def _with_sentinels(ids: np.ndarray, replaced: np.ndarray, sentinels: Sequence[int]) -> np.ndarray:
    begins = replaced & ~np.append(False, replaced[:-1])
    result = ids.copy()
    result[begins] = np.array(sentinels)[: begins.sum()]
    return result[begins | ~replaced]
