"""The rules that a document passes: each is a pure function from a document to a document or a `Drop` with its reason.

Repetition follows Gopher (Rae et al. 2021, appendix A1.1) in FineWeb's form, with FineWeb-2's values for Chinese
(cmn_Hani); overlap with evaluation texts follows GPT-3 (Brown et al. 2020, appendix C). Every threshold is an argument
whose default is the paper's. Deviations are named where they are made.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from hashlib import blake2b
from itertools import accumulate
from typing import Any

import numpy as np

from athanor.corpus.document import Document, valid_unicode
from athanor.corpus.terms import gram_hashes, terms


@dataclass(frozen=True)
class Drop:
    """Why a document leaves. reason: the rule. detail: the measure or the task that decided."""

    reason: str
    detail: str = ""


# -- repair -----------------------------------------------------------------------------------------------------------

_CONTROLS = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\ufeff]")
# What ftfy could mend: entities, controls, odd line ends, surrogates, and mojibake. Mojibake is a UTF-8 lead byte and a
# continuation byte read in a one-byte code page, so two neighbours that are neither ASCII nor CJK; common punctuation
# in second place counts only after a Latin letter. Skipping all other text makes the rule twice as fast.
_SUSPICIOUS = re.compile(
    "[&\x00-\x08\x0e-\x1f\x7f-\x9f\u2028\u2029\ufeff\ufff9-\uffff\ud800-\udfff]"
    "|[\xc2-\xf4][\x80-\u2dff]|[\x80-\u2dff\ufb01\ufb02][\x80-\u200f\u2030-\u2dff]"
)


@cache
def _fixer() -> Any:
    import ftfy

    settings = ftfy.TextFixerConfig(
        uncurl_quotes=False, fix_character_width=False, fix_latin_ligatures=False, normalization=None, explain=False
    )
    return lambda text: ftfy.fix_text(text, settings)


def repair(document: Document) -> Document:
    """Mends mojibake and HTML entities (ftfy), control characters, line ends, trailing spaces and excess blank lines.

    Quotes, character widths, ligatures and normal forms (NFC, NFKC) stay as they are: they are the writer's.
    """
    text = document.text.replace("\r\n", "\n").replace("\r", "\n").replace("\f", "\n").replace("\v", "\n")
    while _SUSPICIOUS.search(text):  # a control may have stood within what can be mended without it
        before, text = text, _CONTROLS.sub("", _fixer()(valid_unicode(text)))
        if text == before:
            break
    text = re.sub(r"[ \t\u3000]+\n", "\n", text)
    text = re.sub(r"\n{4,}", "\n\n\n", text).strip("\n \t\u3000")
    return document if text == document.text else replace(document, text=text)


# -- length -----------------------------------------------------------------------------------------------------------


def minimum_length(document: Document, minimum: int = 50) -> Document | Drop:
    """Drops texts of fewer than `minimum` terms (50 words: Gopher, for web pages; a curated source sets its own)."""
    count = len(terms(document.text))
    return document if count >= minimum else Drop("minimum_length", f"{count} terms, at least {minimum}")


# -- repetition -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RepetitionLimits:
    """Largest allowed shares of duplicated paragraphs and lines (of their number, and of the text's characters).

    top: (n, share of the characters that lie in the commonest n-gram).
    duplicate: (n, share of the characters that lie in n-grams which occurred before).
    """

    paragraphs: float
    paragraph_characters: float
    lines: float
    line_characters: float
    top: tuple[tuple[int, float], ...]
    duplicate: tuple[tuple[int, float], ...]


GOPHER = RepetitionLimits(
    paragraphs=0.30,
    paragraph_characters=0.20,
    lines=0.30,
    line_characters=0.20,
    top=((2, 0.20), (3, 0.18), (4, 0.16)),
    duplicate=((5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.10)),
)
# FineWeb-2, configs/cmn_Hani.yml. Its n-grams are of segmented words; ours are of characters, so each n is multiplied
# by 1.65, about the characters of a word in the PKU text of the second SIGHAN bakeoff (Emerson 2005), and rounded.
CHINESE = RepetitionLimits(
    paragraphs=0.30,
    paragraph_characters=0.20,
    lines=0.287,
    line_characters=0.20,
    top=((3, 0.256), (5, 0.201), (7, 0.171)),
    duplicate=((8, 0.198), (10, 0.182), (12, 0.167), (13, 0.154), (15, 0.14), (17, 0.127)),
)


_OFTEN = 4
_ENOUGH_TERMS = 50


def repetition(document: Document, limits: RepetitionLimits | None = None) -> Document | Drop:
    """Drops texts that repeat themselves. limits: by default CHINESE for "zh", GOPHER for all else.

    Deviation: Gopher's shares are meant for web pages of at least 50 words. In a shorter text, such as a definition
    that names its subject twice, they are reached by chance; so a commonest n-gram counts when it occurs at least four
    times, and duplicate n-grams count in texts of at least 50 terms. On the default sources the original drops 500
    documents, nearly all of them sound encyclopedia entries; this form drops 93.
    """
    limits = limits or (CHINESE if document.language == "zh" else GOPHER)
    text = document.text
    found = (
        _repeated_parts(
            re.split(r"\n{2,}", text), len(text), limits.paragraphs, limits.paragraph_characters, "paragraphs"
        )
        or _repeated_parts(re.split(r"\n+", text), len(text), limits.lines, limits.line_characters, "lines")
        or _repeated_grams(text, limits)
    )
    return Drop("repetition", found) if found else document


def _repeated_parts(parts: list[str], total: int, share: float, characters: float, what: str) -> str:
    if len(set(parts)) == len(parts):
        return ""
    seen: set[str] = set()
    number = length = 0
    for part in parts:
        if part in seen:
            number += 1
            length += len(part)
        seen.add(part)
    if number > share * len(parts):
        return f"{number / len(parts):.2f} of the {what} are duplicates"
    return f"{length / total:.2f} of the characters are in duplicate {what}" if length > characters * total else ""


def _repeated_grams(text: str, limits: RepetitionLimits) -> str:
    """Checks upper bounds first, from the shortest n-grams: nearly every text passes without the exact counts."""
    grams = np.sort(gram_hashes(text, limits.top[0][0]))
    if (grams[_OFTEN - 1 :] == grams[: 1 - _OFTEN]).any():
        most = max(Counter(grams.tolist()).values())
        if most * _longest(text, limits.top) > min(share for _, share in limits.top) * len(text):
            for n, share in limits.top:
                if (top := _top_gram(gram_hashes(text, n), _lengths(text, n))) > share * len(text):
                    return f"{top / len(text):.2f} of the characters are in one {n}-gram"
    if len(terms(text)) < _ENOUGH_TERMS:
        return ""
    grams = np.sort(gram_hashes(text, limits.duplicate[0][0]))
    again = int((grams[1:] == grams[:-1]).sum())
    if again and again * _longest(text, limits.duplicate) > min(share for _, share in limits.duplicate) * len(text):
        for n, share in limits.duplicate:
            if (repeated := _duplicate_grams(gram_hashes(text, n), _lengths(text, n), n)) > share * len(text):
                return f"{repeated / len(text):.2f} of the characters are in duplicate {n}-grams"
    return ""


@lru_cache(maxsize=2)
def _ends(text: str) -> np.ndarray:
    """(terms + 1,) characters before each term, white space and punctuation left out."""
    return np.fromiter(accumulate(map(len, terms(text)), initial=0), dtype=np.int64)


def _lengths(text: str, n: int) -> np.ndarray:
    """(n-grams,) characters of each n-gram of terms."""
    ends = _ends(text)
    return ends[n:] - ends[:-n]


def _longest(text: str, rules: tuple[tuple[int, float], ...]) -> int:
    return int(max(_lengths(text, n).max(initial=0) for n in (rules[0][0], rules[-1][0])))


def _top_gram(grams: np.ndarray, lengths: np.ndarray) -> int:
    """Characters covered by the n-gram that occurs most often (the longest of them), or 0 if none occurs often."""
    _, first, counts = np.unique(grams, return_index=True, return_counts=True)
    most = counts.max(initial=0)
    return int(most * lengths[first[counts == most]].max()) if most >= _OFTEN else 0


def _duplicate_grams(grams: np.ndarray, lengths: np.ndarray, n: int) -> int:
    """Characters in n-grams that occurred before, counted from the left without overlap."""
    seen: set[int] = set()
    values = grams.tolist()
    repeated = i = 0
    while i < len(values):
        if values[i] in seen:
            repeated += int(lengths[i])
            i += n
        else:
            seen.add(values[i])
            i += 1
    return repeated


# -- duplicates -----------------------------------------------------------------------------------------------------


def exact_duplicates(document: Document, seen: set[bytes]) -> Document | Drop:
    """Drops texts seen before, up to case and white space. seen: 16-byte hashes, added to here."""
    digest = blake2b(" ".join(document.text.casefold().split()).encode("utf-8"), digest_size=16).digest()
    if digest in seen:
        return Drop("exact_duplicates")
    seen.add(digest)
    return document


# -- decontamination ------------------------------------------------------------------------------------------------


class _GramSet:
    """A set of n-gram hashes: a sorted array behind a table, by the upper bits, of those that may be in it."""

    def __init__(self, grams: np.ndarray) -> None:
        self.grams = grams
        bits = max(10, (16 * len(grams)).bit_length())
        self._shift = np.uint64(64 - bits)
        self._likely = np.zeros(1 << bits, dtype=bool)
        self._likely[grams >> self._shift] = True

    def places(self, grams: np.ndarray) -> np.ndarray:
        """Where in the sorted array those of `grams` stand that are in the set."""
        grams = grams[self._likely[grams >> self._shift]]
        if not len(grams):
            return np.empty(0, dtype=np.int64)
        places = np.minimum(np.searchsorted(self.grams, grams), len(self.grams) - 1)
        return places[self.grams[places] == grams]


@dataclass(frozen=True)
class EvaluationIndex:
    """n-gram hashes of evaluation texts, each with the first task that has it."""

    n: int
    shortest: int
    grams: _GramSet  # of n terms, and whole texts of fewer
    owners: np.ndarray  # by place in grams: index into tasks
    starts: _GramSet  # the first `shortest` terms of the texts that have fewer than n
    tasks: tuple[str, ...]
    texts: tuple[int, ...]  # number of texts by task
    ignored: tuple[int, ...]  # of these, too short to be looked for


def evaluation_index(evaluation_texts: Iterable[tuple[str, str]], n: int = 13, shortest: int = 8) -> EvaluationIndex:
    """An index of (task, text) pairs for `decontaminate`.

    n: 13 terms as in GPT-3 (there words; here a Han character is a term too). A text of fewer than n terms is
    looked for as a whole, but only from `shortest` terms on: shorter ones occur by chance and are counted as ignored.
    """
    tasks: dict[str, int] = {}
    texts: Counter[str] = Counter()
    ignored: Counter[str] = Counter()
    grams = [np.empty(0, dtype=np.uint64)]
    owners = [np.empty(0, dtype=np.uint16)]
    starts = [np.empty(0, dtype=np.uint64)]
    for task, text in evaluation_texts:
        owner = tasks.setdefault(task, len(tasks))
        texts[task] += 1
        length = min(n, len(terms(text)))
        if length < shortest:
            ignored[task] += 1
            continue
        grams.append(gram_hashes(text, length))
        owners.append(np.full(len(grams[-1]), owner, dtype=np.uint16))
        if length < n:
            starts.append(gram_hashes(text, shortest)[:1])
    unique, first = np.unique(np.concatenate(grams), return_index=True)
    return EvaluationIndex(
        n=n,
        shortest=shortest,
        grams=_GramSet(unique),
        owners=np.concatenate(owners)[first],
        starts=_GramSet(np.unique(np.concatenate(starts))),
        tasks=tuple(tasks),
        texts=tuple(texts[task] for task in tasks),
        ignored=tuple(ignored[task] for task in tasks),
    )


def decontaminate(document: Document, index: EvaluationIndex) -> Document | Drop:
    """Drops texts that share an n-gram, or a whole shorter text, with an evaluation; the detail names the task."""
    text = document.text
    lengths = [index.n]
    if len(index.starts.places(gram_hashes(text, index.shortest))):
        lengths += range(index.shortest, index.n)
    for n in lengths:
        if len(hits := index.grams.places(gram_hashes(text, n))):
            return Drop("decontaminate", index.tasks[index.owners[hits[0]]])
    return document
