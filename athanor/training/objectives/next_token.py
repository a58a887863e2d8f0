"""The next token: pre-training and fine-tuning of decoders."""

from __future__ import annotations

from athanor.models.decoder import Decoder
from athanor.training.batches import IGNORED, Batch
from athanor.training.objectives.cross_entropy import head_cross_entropy
from athanor.training.objectives.loss import Loss
from athanor.training.soft_targets import SoftBatch


def next_token(model: Decoder, batch: Batch) -> Loss:
    """The loss of pre-training, of fill-in-the-middle and of supervised fine-tuning alike: what differs is the tokens,
    and which targets a batch has.
    """
    hidden = model.hidden(batch.tokens, positions=batch.positions, document_ids=batch.document_ids)
    labelled = batch.targets != IGNORED
    hidden, targets = hidden[labelled], batch.targets[labelled]
    if isinstance(batch, SoftBatch):
        words, shares = batch.words[labelled], batch.weights[labelled]
        return Loss(head_cross_entropy(model.head, model.embedding, hidden, words, shares), len(targets))
    return Loss(head_cross_entropy(model.head, model.embedding, hidden, targets), len(targets))
