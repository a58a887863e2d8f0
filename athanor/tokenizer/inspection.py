"""What a tokenizer does to text: compression by language, unused tokens, and a picture of the cuts.

Feeds the report card and `athanor tokenizer inspect`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from athanor.tokenizer.pretokenization import pre_tokens
from athanor.tokenizer.tokenizer import Tokenizer


def compression_by_language(tokenizer: Tokenizer, texts_by_language: Mapping[str, Iterable[str]]) -> dict[str, Any]:
    """Plain data for the report.

    `languages.NAME`: texts, bytes (UTF-8), characters, tokens, bytes_per_token, tokens_per_character (None: no text);
    `vocabulary`: size, control (how many), unused (ordinary tokens that no text used), unused_share (of the ordinary).
    """
    counts = np.zeros(tokenizer.vocab_size, dtype=np.int64)
    languages = {}
    for language in sorted(texts_by_language):
        texts = list(texts_by_language[language])
        tokens = 0
        for ids in tokenizer.encode_many(texts):
            tokens += len(ids)
            counts += np.bincount(ids, minlength=tokenizer.vocab_size)
        size = sum(len(text.encode()) for text in texts)
        characters = sum(map(len, texts))
        languages[language] = {
            "texts": len(texts),
            "bytes": size,
            "characters": characters,
            "tokens": tokens,
            "bytes_per_token": size / tokens if tokens else None,
            "tokens_per_character": tokens / characters if characters else None,
        }
    ordinary = tokenizer.vocab_size - len(tokenizer.control)
    unused = int((counts[:ordinary] == 0).sum())
    vocabulary = {
        "size": tokenizer.vocab_size,
        "control": len(tokenizer.control),
        "unused": unused,
        "unused_share": unused / ordinary,
    }
    return {"languages": languages, "vocabulary": vocabulary}


@dataclass(frozen=True)
class Segment:
    """One token of a text.

    shown: its data made printable, pieces of characters as ⟨E4 BD⟩; starts_piece: a pre-token begins here.
    """

    token_id: int
    data: bytes
    shown: str
    starts_piece: bool


def visualise(tokenizer: Tokenizer, text: str) -> list[Segment]:
    """The tokens of `text` in order; their `data` joined is the text's UTF-8."""
    ids = tokenizer.encode(text)
    starts = {0}
    for piece in pre_tokens(text):
        starts.add(max(starts) + len(piece.encode()))
    segments = []
    offset = 0
    for token_id in ids:
        data = tokenizer.token_bytes(token_id)
        segments.append(Segment(token_id, data, show_bytes(data), offset in starts))
        offset += len(data)
    return segments


def show_bytes(data: bytes) -> str:
    """Text that is safe to print: what is not a whole printable character appears as its bytes, ⟨0A⟩ or ⟨E4 BD⟩."""
    shown = ""
    hidden = b""
    for character in data.decode("utf-8", errors="surrogateescape"):
        if character.isprintable():
            shown += _hex(hidden) + character
            hidden = b""
        else:
            hidden += character.encode("utf-8", errors="surrogateescape")
    return shown + _hex(hidden)


def _hex(data: bytes) -> str:
    return f"⟨{data.hex(' ').upper()}⟩" if data else ""
