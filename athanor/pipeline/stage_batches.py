"""The streams of batches that stages read: the shards' text, streamed text, and conversations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from athanor.alignment.messages import Conversation, read_conversations
from athanor.base.errors import RecipeError
from athanor.base.files import read_json
from athanor.base.progress import progress
from athanor.base.randomness import subseed
from athanor.base.run import damaged
from athanor.corpus.shards import Shards
from athanor.corpus.stream_cache import TextStream
from athanor.corpus.streams import StreamIndex
from athanor.models.decoder import Decoder
from athanor.models.ngrams import LONGEST, NGrams
from athanor.pipeline.plans import PretrainPlan, SupervisedPlan
from athanor.tokenizer import Tokenizer
from athanor.tokenizer.chat import training_example
from athanor.training.batches import Batch, DocumentPieces, MaskedSequences, PackedBatches
from athanor.training.growth import GrowingBatches
from athanor.training.soft_targets import SoftBatches
from athanor.training.streaming import StreamedBatches

STREAM = "streamed.json"
"""In a stage of shards that has no training text of its own: where that is."""


def open_text(shards: Path) -> Shards | TextStream:
    """The training text of a stage of shards: all of it there, or an address to stream it from."""
    if not (shards / STREAM).exists():
        return Shards.open(shards / "train")
    found = read_json(shards / STREAM)
    try:
        index = StreamIndex.of_json(found["index"], str(shards / STREAM))
        return TextStream(str(found["address"]), index, int(found["cache_bytes"]))
    except (KeyError, TypeError, ValueError):
        raise damaged(shards / STREAM) from None


def pretraining_batches(
    plan: PretrainPlan, text: Shards | TextStream, seed: int
) -> PackedBatches | GrowingBatches | SoftBatches:
    """The stream of batches that a pre-training plan learns from, from its beginning."""
    batches, remembered = text_batches(plan, text, seed), plan.model.embedding.ngrams
    if not (plan.ngram_targets or remembered) or isinstance(text, TextStream):
        return batches
    with progress("Counting n-grams"):
        ngrams = NGrams.count(text.tokens, text.index.vocab_size, remembered or LONGEST)
    return SoftBatches(batches, ngrams, teach=plan.ngram_targets, remember=bool(remembered))


def give_memory(model: Decoder, source: object) -> None:
    """Lets a model that looks n-grams up have those of the text that it is about to learn."""
    if model.embedding.memory is not None and isinstance(source, SoftBatches):
        model.embedding.memory.table = source.ngrams.pruned()


def text_batches(plan: PretrainPlan, text: Shards | TextStream, seed: int) -> PackedBatches | GrowingBatches:
    """The text that a pre-training plan reads, batch by batch."""
    eot, seed = text.index.end_of_text_id, subseed(seed, "pretrain")
    if isinstance(text, TextStream):
        batches: PackedBatches = StreamedBatches(text, plan.rows, plan.length, seed, pad_id=eot)
    else:
        pieces = DocumentPieces(text.tokens, text.offsets, plan.length, eot)
        batches = PackedBatches(pieces, plan.rows, plan.length, seed, pad_id=eot)
    if plan.rows_growth is None and plan.length_growth is None:
        return batches
    return GrowingBatches(batches, plan.expected_tokens, plan.rows_growth, plan.length_growth)


def conversation_batches(
    conversations: Path, tokenizer: Tokenizer, plan: SupervisedPlan, seed: int
) -> tuple[PackedBatches, int]:
    """Packed training conversations, and how many are longer than a row and left out."""
    found, _ = read_conversations(conversations / "train.jsonl")
    if not found:
        raise damaged(conversations)
    sequences = _render(found, tokenizer, plan.length)
    if not sequences:
        raise RecipeError(f"No conversation fits into sft.length = {plan.length} tokens.", "Make it larger.")
    seed = subseed(seed, "sft")
    batches = PackedBatches(MaskedSequences(sequences), plan.rows, plan.length, seed, pad_id=tokenizer.pad_id)
    return batches, len(found) - len(sequences)


def _render(found: Sequence[Conversation], tokenizer: Tokenizer, length: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Ids and loss masks of the conversations found that fit into `length` places."""
    sequences, longest = [], length * int(tokenizer.byte_lengths.max())
    with progress("Rendering conversations", total=len(found)) as bar:
        for conversation in found:
            bar.update(1)
            if sum(len(message["content"]) for message in conversation.messages) > longest:
                continue  # whatever its tokens are
            rendered = training_example(tokenizer, conversation.messages)
            if len(rendered.ids) - 1 <= length:
                sequences.append((np.array(rendered.ids, dtype=np.int32), np.array(rendered.mask)))
    return sequences


def held_out_conversations(
    conversations: Path, tokenizer: Tokenizer, plan: SupervisedPlan, places: int
) -> Batch | None:
    """A batch of about so many places; None where no conversation is held out that fits into a row."""
    found, _ = read_conversations(conversations / "heldout.jsonl")
    sequences = _render(found, tokenizer, plan.length)
    if not sequences:
        return None
    rows = places // plan.length + 1
    return PackedBatches(MaskedSequences(sequences), rows, plan.length, 0, pad_id=tokenizer.pad_id).next()
