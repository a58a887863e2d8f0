"""Texts with hidden words, for encoders: RoBERTa's whole pieces of documents (Liu et al. 2019), BERT's pairs with the
question whether the second text follows the first (Devlin et al. 2019), ELECTRA's (Clark et al. 2020).

Masks are drawn anew each epoch. Deviation: texts are packed, each attends to itself alone, so no place is padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from torch import Tensor

from athanor.base.randomness import generator
from athanor.training.batches import IGNORED, Batch, lay_out
from athanor.training.drawn import Drawn, Pieces, SpecialTokens
from athanor.training.words import Words

FOLLOWS, RANDOM = 0, 1  # labels of a pair, as transformers has them
_EMPTY: dict[str, int | float] = {"targets": IGNORED, "segments": 0, "pair_labels": IGNORED, "draws": 0.0}


@dataclass(frozen=True)
class EncoderBatch(Batch):
    """targets: the hidden tokens. segments: 0, or 1 in the second text of a pair. pair_labels: at a pair's first place,
    FOLLOWS or RANDOM. draws: fp32 in [0, 1), one for each place, by which a generator samples.

    counts: hidden tokens ("targets"), places that are no padding ("places"), pairs ("pairs").
    """

    segments: Tensor
    pair_labels: Tensor
    draws: Tensor

    def without_targets(self) -> Self:
        nothing = torch.full_like(self.targets, IGNORED)
        return replace(self, targets=nothing, pair_labels=nothing, document_ids=torch.full_like(nothing, -1))


@dataclass(frozen=True)
class Masking:
    """rate: part of the tokens that is hidden, in whole words where `words` are known. Of those, the share `masked`
    becomes the mask token and the share `replaced` any token; the rest stays as it is.
    """

    words: Words | None = None
    rate: float = 0.15
    masked: float = 0.8
    replaced: float = 0.1

    def __post_init__(self) -> None:
        if not (0 < self.rate < 1 and self.masked >= 0 and self.replaced >= 0 and self.masked + self.replaced <= 1):
            raise ValueError(f"{self} has shares that are not between 0 and 1")


def hide(
    ids: np.ndarray, masking: Masking, special: SpecialTokens, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets of a text; at least one token is a target."""
    chosen = _choose(ids, masking, random)
    inputs, targets = ids.copy(), np.full_like(ids, IGNORED)
    targets[chosen] = ids[chosen]
    fate = random.random(len(chosen))
    inputs[chosen[fate < masking.masked]] = special.mask
    replaced = chosen[(fate >= masking.masked) & (fate < masking.masked + masking.replaced)]
    inputs[replaced] = random.choice(special.ordinary, len(replaced))
    return inputs, targets


def _choose(ids: np.ndarray, masking: Masking, random: np.random.Generator) -> np.ndarray:
    """Places to hide: words in random order, leaving out those that no longer fit into the rate."""
    exact = len(ids) * masking.rate
    wanted = max(1, int(exact) + int(random.random() < exact % 1))
    starts = np.arange(len(ids)) if masking.words is None else np.flatnonzero(masking.words.starts(ids))
    sizes = np.diff(starts, append=len(ids))
    order = random.permutation(len(starts))
    chosen: list[int] = []
    for word in order.tolist():
        if len(chosen) + sizes[word] <= wanted:
            chosen += range(starts[word], starts[word] + sizes[word])
        if len(chosen) == wanted:
            break
    if not chosen:  # every word is longer
        word = int(sizes.argmin())
        chosen = [*range(starts[word], starts[word] + sizes[word])]
    return np.array(chosen)


class MaskedTexts:
    """Each piece of a document between the tokens `classify` and `separate`."""

    def __init__(self, pieces: Pieces, special: SpecialTokens, masking: Masking, seed: int) -> None:
        self.pieces, self.special, self.masking, self.seed = pieces, special, masking, seed
        self.lengths = pieces.lengths + 2

    def draw(self, index: int, epoch: int) -> Drawn:
        random = generator(self.seed, "mask", epoch, index)
        inputs, targets = hide(self.pieces[index], self.masking, self.special, random)
        return _between(self.special, random, [inputs], [targets])

    def collate(self, drawn: Sequence[Drawn], rows: Sequence[Sequence[int]], length: int) -> EncoderBatch:
        return _collate(drawn, rows, length, self.special)


class MaskedPairs:
    """Two texts and the question whether they stood together: a piece cut at a sentence, or its first part with equally
    many tokens of another document's.
    """

    def __init__(self, pieces: Pieces, special: SpecialTokens, masking: Masking, words: Words, seed: int) -> None:
        self.pieces, self.special, self.masking, self.words, self.seed = pieces, special, masking, words, seed
        self.lengths = pieces.lengths + 3

    def draw(self, index: int, epoch: int) -> Drawn:
        random = generator(self.seed, "pair", epoch, index)
        ids = self.pieces[index]
        cut = self._cut(ids, random)
        first, second, label = ids[:cut], ids[cut:], FOLLOWS
        if random.random() < 0.5:
            second, label = self._other(index, len(second), random), RANDOM
        texts = [hide(text, self.masking, self.special, random) for text in (first, second)]
        drawn = _between(self.special, random, [inputs for inputs, _ in texts], [targets for _, targets in texts])
        labels = np.full(len(drawn["tokens"]), IGNORED)
        labels[0] = label
        return {**drawn, "pair_labels": labels}

    def _cut(self, ids: np.ndarray, random: np.random.Generator) -> int:
        """The beginning of a sentence nearest to a random place in the middle half."""
        wanted = int(random.integers(len(ids) // 4, len(ids) - len(ids) // 4))
        starts = self.words.sentence_starts(ids)
        return int(starts[np.abs(starts - wanted).argmin()]) if len(starts) else wanted

    def _other(self, index: int, size: int, random: np.random.Generator) -> np.ndarray:
        """At most `size` tokens from the beginning of a sentence of another piece."""
        number = int(random.integers(len(self.pieces) - 1)) if len(self.pieces) > 1 else index
        other = self.pieces[number + (number >= index and len(self.pieces) > 1)]
        starts = np.append(0, self.words.sentence_starts(other))
        start = int(starts[random.integers(len(starts))])
        return other[start : start + size]

    def collate(self, drawn: Sequence[Drawn], rows: Sequence[Sequence[int]], length: int) -> EncoderBatch:
        return _collate(drawn, rows, length, self.special)


def _between(
    special: SpecialTokens, random: np.random.Generator, inputs: list[np.ndarray], targets: list[np.ndarray]
) -> Drawn:
    """classify text separate (text separate), with their segments."""
    parts, labels, segments = [np.array([special.classify])], [np.array([IGNORED])], [np.array([0])]
    for number, (text, wanted) in enumerate(zip(inputs, targets, strict=True)):
        parts += [text, np.array([special.separate])]
        labels += [wanted, np.array([IGNORED])]
        segments.append(np.full(len(text) + 1, number))
    tokens = np.concatenate(parts)
    draws = random.random(len(tokens), dtype=np.float32)
    return {
        "tokens": tokens, "targets": np.concatenate(labels), "segments": np.concatenate(segments), "draws": draws,
    }  # fmt: skip


def _collate(
    drawn: Sequence[Drawn], rows: Sequence[Sequence[int]], length: int, special: SpecialTokens
) -> EncoderBatch:
    columns = lay_out(rows, length, lambda number: drawn[number], {"tokens": special.end, **_EMPTY})
    counts = {
        "targets": int((columns["targets"] != IGNORED).sum()),
        "places": int((columns["document_ids"] >= 0).sum()),
        "pairs": int((columns["pair_labels"] != IGNORED).sum()),
    }
    return EncoderBatch(**columns, counts=counts)
