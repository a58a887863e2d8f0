"""What encoder–decoders learn from corrupted texts (T5, UL2), and decoders from texts whose prefix is seen as a
whole.
"""

from __future__ import annotations

from athanor.models.decoder import Decoder
from athanor.models.encoder_decoder import EncoderDecoder
from athanor.training.batches import IGNORED, rows_at
from athanor.training.denoisers import SourceTargetBatch
from athanor.training.objectives.cross_entropy import head_cross_entropy
from athanor.training.objectives.loss import Loss
from athanor.training.prefixes import PrefixBatch


def denoising(model: EncoderDecoder, batch: SourceTargetBatch) -> Loss:
    """The target's tokens, from the source and what of the target stands before."""
    hidden = model.hidden(
        batch.source,
        batch.tokens,
        source_positions=batch.source_positions,
        source_documents=batch.source_document_ids,
        positions=batch.positions,
        document_ids=batch.document_ids,
    )
    labelled = batch.targets != IGNORED
    targets = batch.targets[labelled]
    return Loss(
        head_cross_entropy(model.head, model.decoder.embedding, rows_at(hidden, labelled), targets), len(targets)
    )


def prefix_language_model(model: Decoder, batch: PrefixBatch) -> Loss:
    """The next token behind the prefix; a place sees its document's whole prefix, and what stands before it."""
    documents, time = batch.document_ids, batch.tokens.shape[1]
    same = documents[:, :, None] == documents[:, None, :]
    earlier = same.new_ones(time, time).tril()
    seen = same & (earlier | batch.prefix.bool()[:, None, :])
    hidden = model.hidden(batch.tokens, positions=batch.positions, mask=seen[:, None])
    labelled = batch.targets != IGNORED
    targets = batch.targets[labelled]
    return Loss(head_cross_entropy(model.head, model.embedding, rows_at(hidden, labelled), targets), len(targets))
