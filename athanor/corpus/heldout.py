"""The held-out split: by document, fixed by seed and id, with a check that nothing held out is nearly in training.

A document's place in [0, 1) depends on the seed and its id alone, so adding or removing others does not move it. Of
each source the documents with the smallest places are held out: the given share, at least one, and no more bytes than
allowed. Near-duplicates are found afterwards: training n-grams go to a temporary file, so memory does not grow.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from athanor.base.randomness import key
from athanor.corpus.document import Document
from athanor.corpus.terms import gram_hashes

_GRAM = 13


def place(seed: int, purpose: str, identity: str) -> float:
    """A uniform number in [0, 1) for this seed, purpose and document id."""
    return (key(seed, purpose, identity) >> 75) * 2.0**-53


class HeldOut:
    """Chooses while documents stream by; holds only those that are held out at the moment."""

    def __init__(self, seed: int, share: float = 0.02, bytes_per_source: int = 1 << 20) -> None:
        self.seed, self.share, self.limit = seed, share, bytes_per_source
        self._held: dict[str, list[tuple[float, str, int, Document]]] = {}  # heaps, largest place first
        self._bytes: dict[str, int] = {}
        self._offered: dict[str, int] = {}

    def offer(self, document: Document) -> Iterator[Document]:
        """Takes a document; yields those that are (now) certain to be for training."""
        where, source = place(self.seed, "held-out", document.id), document.source
        self._offered[source] = number = self._offered.get(source, 0) + 1
        held = self._held.setdefault(source, [])
        if held and where >= max(self.share, -held[0][0]):
            yield document
            return
        heapq.heappush(held, (-where, document.id, number, document))
        self._bytes[source] = self._bytes.get(source, 0) + document.n_bytes
        while len(held) > 1 and (-held[0][0] >= self.share or self._bytes[source] > self.limit):
            released = heapq.heappop(held)[-1]
            self._bytes[source] -= released.n_bytes
            yield released

    def finish(self) -> tuple[list[Document], list[Document]]:
        """(held out, for training after all) by source and arrival; a source's only document is for training."""
        held_out: list[Document] = []
        released: list[Document] = []
        for source, heap in self._held.items():
            documents = [entry[-1] for entry in sorted(heap, key=lambda entry: entry[2])]
            (held_out if self._offered[source] > 1 and self.share > 0 else released).extend(documents)
        return held_out, released


def held_out_split(documents: list[Document], seed: int, share: float = 0.02) -> tuple[list[Document], list[Document]]:
    """(training, held out) of documents that fit in memory."""
    chooser = HeldOut(seed, share)
    training = [released for document in documents for released in chooser.offer(document)]
    held_out, rest = chooser.finish()
    return training + rest, held_out


def note_grams(document: Document, file: BinaryIO) -> None:
    """Appends the 13-gram hashes of a training document to the file."""
    file.write(gram_hashes(document.text, _GRAM).tobytes())


def near_duplicates(held_out: list[Document], training_grams: BinaryIO, share: float = 0.5) -> set[str]:
    """Ids of held-out documents that have more than `share` of their 13-grams in the file that `note_grams` filled."""
    grams = [np.unique(gram_hashes(document.text, _GRAM)) for document in held_out]
    wanted = np.unique(np.concatenate([np.empty(0, dtype=np.uint64), *grams]))
    if not len(wanted):
        return set()
    found = np.zeros(len(wanted), dtype=bool)
    training_grams.seek(0)
    while block := training_grams.read(1 << 23):
        values = np.frombuffer(block, dtype=np.uint64)
        places = np.minimum(np.searchsorted(wanted, values), len(wanted) - 1)
        found[places[wanted[places] == values]] = True
    return {
        document.id
        for document, own in zip(held_out, grams, strict=True)
        if len(own) and found[np.searchsorted(wanted, own)].mean() > share
    }
