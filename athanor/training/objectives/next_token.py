"""The next token: pre-training and fine-tuning of decoders."""

from __future__ import annotations

from athanor.models.decoder import Decoder
from athanor.training.batches import IGNORED, Batch, rows_at
from athanor.training.objectives.cross_entropy import head_cross_entropy
from athanor.training.objectives.loss import Loss
from athanor.training.soft_targets import SoftBatch


def next_token(model: Decoder, batch: Batch) -> Loss:
    """The loss of pre-training, of fill-in-the-middle and of supervised fine-tuning alike: what differs is the tokens,
    and which targets a batch has.
    """
    soft = batch if isinstance(batch, SoftBatch) else None
    hidden = model.hidden(
        batch.tokens,
        positions=batch.positions,
        document_ids=batch.document_ids,
        followers=soft.followers if soft else None,
    )
    labelled = batch.targets != IGNORED
    words, shares = soft.labels(labelled) if soft else (batch.targets[labelled], None)
    return Loss(head_cross_entropy(model.head, model.embedding, rows_at(hidden, labelled), words, shares), len(words))
