"""Hidden words, and whether two texts belong together: what BERT learns from (Devlin et al. 2019)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from athanor.base.errors import ModelError
from athanor.models.encoder import Encoder
from athanor.training.batches import IGNORED, rows_at
from athanor.training.masking import EncoderBatch
from athanor.training.objectives.cross_entropy import head_cross_entropy
from athanor.training.objectives.loss import Loss


def masked_language_model(model: Encoder, batch: EncoderBatch) -> Loss:
    """The mean over hidden tokens and, for a model with a head for it, the mean over pairs, added as in BERT."""
    if model.head is None:
        raise ModelError("This encoder has no head for hidden words.", "Set head in its configuration.")
    states = encoded(model, batch)
    labelled = batch.targets != IGNORED
    targets = batch.targets[labelled]
    words = head_cross_entropy(model.head, model.embedding, rows_at(states, labelled), targets)
    if model.next_sentence is None:
        return Loss(words, len(targets))
    pairs = next_sentence(model, states, batch)
    each = batch.counts["targets"] / batch.counts["pairs"]
    metrics = {"masked": float(words.detach()), "next_sentence": float(pairs.detach()) * each}
    return Loss(words + pairs * each, len(targets), metrics)


def encoded(model: Encoder, batch: EncoderBatch) -> Tensor:
    """The states (rows, time, d_model) of packed texts."""
    types = batch.segments if model.embedding.types is not None else None
    return model.encode(batch.tokens, types=types, positions=batch.positions, document_ids=batch.document_ids)


def next_sentence_logits(model: Encoder, states: Tensor, batch: EncoderBatch) -> Tensor:
    """(pairs, 2). Raises ModelError for a model without this head, or a batch without pairs."""
    if model.next_sentence is None:
        raise ModelError("This encoder has no head for the next sentence.", "Set next_sentence in its configuration.")
    if not batch.counts["pairs"]:
        raise ModelError(
            "This encoder has a head for the next sentence, and the batch has no pairs of texts.",
            "Give it MaskedPairs, or a configuration with next_sentence=False.",
        )
    first = states[batch.pair_labels != IGNORED]
    logits: Tensor = model.next_sentence(model.pool(first[:, None]))
    return logits


def next_sentence(model: Encoder, states: Tensor, batch: EncoderBatch) -> Tensor:
    """Summed cross-entropy over the pairs of the batch, in nats."""
    logits = next_sentence_logits(model, states, batch)
    return F.cross_entropy(logits.float(), batch.pair_labels[batch.pair_labels != IGNORED], reduction="sum")
