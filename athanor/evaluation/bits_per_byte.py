"""Held-out bits per byte: how well a model predicts text it has never seen, whatever its vocabulary.

Every token of a document is scored exactly once, with at least half a window of context before it unless the document
itself is shorter. The end-of-text token stands for no bytes and is not counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from athanor.base.randomness import generator
from athanor.corpus.shards import Shards
from athanor.models.decoder import Decoder
from athanor.models.precision import autocast
from athanor.training.batches import IGNORED, Batch, PackedBatches, pack

_CHUNK = 2048  # rows of logits at a time


@dataclass(frozen=True)
class HeldOut:
    """Documents to score. tokens, offsets: as in shards, each document closed by end of text; sizes: bytes of each."""

    tokens: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray
    sources: tuple[str, ...]
    languages: tuple[str, ...]
    end_of_text_id: int

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def n_tokens(self) -> int:
        return len(self.tokens) - len(self)


def sample_held_out(shards: Shards, most_tokens: int, seed: int) -> HeldOut:
    """Documents in a keyed random order until `most_tokens` are reached; sources keep their natural shares."""
    return held_out(shards, choose_documents(shards, most_tokens, seed))


def choose_documents(shards: Shards, most_tokens: int, seed: int) -> np.ndarray:
    """The places, ascending, of the documents that `sample_held_out` takes."""
    order = generator(seed, "held-out sample").permutation(len(shards))
    lengths = np.diff(shards.offsets)[order]
    count = max(1, int(np.searchsorted(np.cumsum(lengths), most_tokens, side="right")))
    return np.sort(order[:count])


def held_out(shards: Shards, chosen: np.ndarray) -> HeldOut:
    """The documents at these places."""
    documents = [np.asarray(shards.document(int(i))) for i in chosen]
    kinds = [shards.source_of(int(i)) for i in chosen]
    return HeldOut(
        np.concatenate(documents),
        np.concatenate([[0], np.cumsum([len(d) for d in documents])]),
        np.array([shards.bytes_of(int(i)) for i in chosen]),
        tuple(kind.name for kind in kinds),
        tuple(kind.language for kind in kinds),
        shards.index.end_of_text_id,
    )


class _Windows:
    """Overlapping windows over documents as packable sequences; only the part not scored before has targets."""

    def __init__(self, held_out: HeldOut, length: int) -> None:
        self.held_out = held_out
        half = length // 2
        spans = []  # (document, first place, first scored place, end)
        for document, (start, end) in enumerate(
            zip(held_out.offsets[:-1].tolist(), (held_out.offsets[1:] - 1).tolist(), strict=True)
        ):
            scored = start
            while scored < end:
                begin = max(start, scored - half) if scored > start else start
                stop = min(end, begin + length)
                spans.append((document, begin, scored, stop))
                scored = stop
        self.spans = spans
        self.lengths = np.array([stop - begin for _, begin, _, stop in spans], dtype=np.int64)

    def pair(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        document, begin, scored, stop = self.spans[index]
        tokens = self.held_out.tokens
        at_start = begin == self.held_out.offsets[document]
        inputs = (
            tokens[begin - 1 : stop - 1].astype(np.int64)
            if begin
            else np.concatenate([[0], tokens[: stop - 1]]).astype(np.int64)
        )
        if at_start:
            inputs[0] = self.held_out.end_of_text_id
        targets = tokens[begin:stop].astype(np.int64)
        targets[: scored - begin] = IGNORED
        return inputs, targets


@torch.no_grad()
def token_nats(model: Decoder, batch: Batch) -> Tensor:
    """−log p of each target, fp32, in the order of `batch.targets` without the ignored ones."""
    hidden = model.hidden(batch.tokens, positions=batch.positions, document_ids=batch.document_ids)
    labelled = batch.targets != IGNORED
    states, targets = hidden[labelled], batch.targets[labelled, None]
    parts = [
        torch.log_softmax(model.logits(states[i : i + _CHUNK]).float(), -1).gather(1, targets[i : i + _CHUNK])
        for i in range(0, len(states), _CHUNK)
    ]
    return -torch.cat(parts).squeeze(1)


def document_nats(
    model: Decoder, held_out: HeldOut, length: int, precision: str = "fp32", rows: int = 16
) -> np.ndarray:
    """Nats of each document, (documents,) float64, read in windows of `length`."""
    windows = _Windows(held_out, length)
    packed = pack(windows.lengths, length)
    assembler = PackedBatches(windows, rows, length, 0, pad_id=held_out.end_of_text_id)
    nats, device = np.zeros(len(held_out)), next(model.parameters()).device
    for start in range(0, len(packed), rows):
        members = packed[start : start + rows]
        batch = assembler.assemble(members).to(device)
        with autocast(precision, device):
            values = token_nats(model, batch).double().cpu().numpy()
        owners = np.concatenate([
            np.repeat(windows.spans[i][0], windows.spans[i][3] - windows.spans[i][2]) for row in members for i in row
        ])  # fmt: skip
        np.add.at(nats, owners, values)
    return nats


def bits_per_byte(nats: np.ndarray, held_out: HeldOut, chosen: np.ndarray | None = None) -> float:
    """Over all documents, or those where `chosen` is True."""
    chosen = np.ones(len(held_out), dtype=bool) if chosen is None else chosen
    return float(nats[chosen].sum() / np.log(2) / held_out.sizes[chosen].sum())


def grouped_bits_per_byte(
    nats: Mapping[str, np.ndarray], held_out: HeldOut, labels: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Label (of each document) → model → bits per byte."""
    array = np.array(labels)
    return {
        label: {name: bits_per_byte(values, held_out, array == label) for name, values in nats.items()}
        for label in sorted(set(labels))
    }
