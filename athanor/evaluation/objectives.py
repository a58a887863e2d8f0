"""How well an objective was learnt: on held-out text, against what needs no network: the frequencies that the targets
have in training, or the most frequent answer.

Intervals are 95 % bootstrap intervals over rows of packed texts, of the paired difference from the baseline.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from athanor.base.statistics import bootstrap_mean
from athanor.models.encoder import Encoder
from athanor.training.batches import IGNORED, Batch, PackedBatches
from athanor.training.drawn import SpecialTokens
from athanor.training.objectives import Electra
from athanor.training.objectives.masked import encoded, next_sentence_logits
from athanor.training.objectives.replaced import discriminate, fill
from athanor.training.pretraining import OBJECTIVES, PretrainingObjective

_COUNTED_BATCHES = 20  # of training, for the frequencies of targets


@dataclass(frozen=True)
class Score:
    """value, baseline: means over `n` places. gain: the interval of how much better the value is."""

    name: str
    value: float
    baseline: float
    unit: str
    n: int
    gain: tuple[float, float]

    def __str__(self) -> str:
        low, high = self.gain
        return (
            f"{self.name}: {self.value:.3f} {self.unit}, baseline {self.baseline:.3f} "
            f"(better by {low:.3f} to {high:.3f})"
        )

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "gain": list(self.gain)}


def compare(
    name: str, ours: np.ndarray, theirs: np.ndarray, sizes: np.ndarray, unit: str, *, lower_is_better: bool
) -> Score:
    """ours, theirs, sizes: sums over the places of each text or row, and their number."""
    gains = (theirs - ours if lower_is_better else ours - theirs) / sizes.mean()
    total = sizes.sum()
    return Score(name, float(ours.sum() / total), float(theirs.sum() / total), unit, int(total), bootstrap_mean(gains))


def held_out_batches(source: PackedBatches, most: int) -> list[Batch]:
    """At most `most` batches of the first epoch, in which every text stands once."""
    found: list[Batch] = []
    while len(found) < most and source.position.epoch == 0:
        rows: list[list[int]] = []
        while len(rows) < source.rows:
            (row,) = source.next_rows(1)
            if source.position.epoch > 0:
                break
            rows.append(row)
        if rows:
            found.append(source.assemble(rows))
    return found


@torch.no_grad()
def against_frequencies(
    name: str, model: nn.Module, loss: Any, source: PackedBatches, held_out: Sequence[Batch], vocab_size: int
) -> Score:
    """Bits a target, against the frequencies that targets have in the source's next batches, which it gives again."""
    position = source.get_position()
    counts = np.ones(vocab_size)
    for _ in range(_COUNTED_BATCHES):
        targets = source.next().targets
        counts += np.bincount(targets[targets != IGNORED].numpy(), minlength=vocab_size)
    source.set_position(position)
    unigram = -np.log2(counts / counts.sum())
    ours, theirs, sizes, device = [], [], [], _device(model)
    for part in (part for batch in held_out for part in batch.split(1) if part.n_targets):
        found = loss(model, part.to(device))
        ours.append(float(found.metrics.get("masked", found.sum)) / np.log(2))
        theirs.append(unigram[part.targets[part.targets != IGNORED].numpy()].sum())
        sizes.append(found.count)
    return compare(name, np.array(ours), np.array(theirs), np.array(sizes), "bits/token", lower_is_better=True)


@torch.no_grad()
def next_sentences(name: str, model: Encoder, held_out: Sequence[Any]) -> Score:
    """Pairs of texts told apart, against tossing a coin."""
    right = []
    for batch in held_out:
        batch = batch.to(_device(model))
        logits = next_sentence_logits(model, encoded(model, batch), batch)
        right.append(logits.argmax(-1) == batch.pair_labels[batch.pair_labels != IGNORED])
    found = torch.cat(right).double().cpu().numpy()
    half, ones = np.full_like(found, 0.5), np.ones_like(found)
    return compare(name, found, half, ones, "accuracy", lower_is_better=False)


@torch.no_grad()
def replaced(name: str, model: Electra, held_out: Sequence[Any]) -> Score:
    """Tokens judged rightly, against always saying that nothing was replaced."""
    right, kept, sizes = [], [], []
    for part in (part.to(_device(model)) for batch in held_out for part in batch.split(1)):
        logits, labels = discriminate(model.discriminator, part, fill(model.generator, part))
        right.append(float(((logits > 0) == labels.bool()).sum()))
        kept.append(float((labels == 0).sum()))
        sizes.append(len(labels))
    return compare(name, np.array(right), np.array(kept), np.array(sizes), "accuracy", lower_is_better=False)


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def only_middles(batch: Batch, special: SpecialTokens) -> Batch:
    """Targets behind a PSM text's middle token; behind an SPM one's, prefix and middle cannot be told apart."""
    targets = torch.full_like(batch.targets, IGNORED)
    for line in range(len(batch.tokens)):
        for document in range(int(batch.document_ids[line].max()) + 1):
            places = (batch.document_ids[line] == document).nonzero().squeeze(1)
            tokens = batch.tokens[line, places]
            if tokens[2] != special.suffix:  # end of text, prefix, then suffix: SPM
                behind = places[(tokens == special.middle).cumsum(0).bool()]
                targets[line, behind] = batch.targets[line, behind]
    return replace(batch, targets=targets)


_NAMES = {
    "masked": "hidden tokens",
    "masked_pairs": "hidden words",
    "spans": "hidden spans",
    "ul2": "hidden spans, mixture of denoisers",
    "prefix": "what follows a prefix",
    "infilling": "the middle between prefix and suffix",
    "experts": "the next token",
    "distilled": "the next token",
}


def objective_scores(
    objective: str, model: Any, source: PackedBatches, held_out: Sequence[Batch], special: SpecialTokens, size: int
) -> list[Score]:
    """The figures of one of `OBJECTIVES`, the most important first. source: the training batches; size: of the
    vocabulary.
    """
    row: PretrainingObjective = OBJECTIVES[objective]
    if objective == "replaced":
        return [replaced("replaced tokens, against always saying no", model, held_out)]
    if objective == "infilling":
        held_out = [only_middles(batch, special) for batch in held_out]
    scores = [against_frequencies(_NAMES[objective], model, row.loss, source, held_out, size)]
    if objective == "masked_pairs":
        scores.append(next_sentences("next sentence", model, held_out))
    return scores
