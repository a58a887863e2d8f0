"""Reading sentencepiece's `tokenizer.model`: the few fields of its protocol buffer that decide the ids.

The numbers of the fields are those of sentencepiece_model.proto. Every length is checked against the bytes that are
there.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from athanor.base.errors import TokenizerError

UNIGRAM, BPE = 1, 2
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_LARGEST = 1 << 27


@dataclass
class SentencePiece:
    """types: as llama.cpp's. characters: the table of replacements (precompiled_charsmap)."""

    tokens: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    types: list[int] = field(default_factory=list)
    kind: int = UNIGRAM
    characters: bytes = b""
    space_prefix: bool = True
    merge_spaces: bool = True


def read_sentencepiece(path: Path) -> SentencePiece:
    """Raises TokenizerError for a file that is not sound, or a kind that is neither Unigram nor BPE."""
    try:
        if path.stat().st_size > _LARGEST:
            raise ValueError("it is too large")
        return _model(path.read_bytes())
    except (OSError, ValueError, struct.error) as error:
        raise TokenizerError(f"{path} cannot be read as a sentencepiece model ({error}).", "Fetch it again.") from None


def _model(data: bytes) -> SentencePiece:
    model = SentencePiece()
    for number, value in _fields(data):
        if number == 1 and isinstance(value, bytes):
            piece = dict(_fields(value))
            text, score = piece.get(1, b""), piece.get(2, 0.0)
            if not isinstance(text, bytes) or not isinstance(score, float):
                raise ValueError(f"its piece {len(model.tokens)} has no text and score")
            model.tokens.append(text.decode())
            model.scores.append(score)
            model.types.append(int(piece.get(3, 1)))
        elif number == 2 and isinstance(value, bytes):
            model.kind = int(dict(_fields(value)).get(3, UNIGRAM))
        elif number == 3 and isinstance(value, bytes):
            normalizer = dict(_fields(value))
            characters = normalizer.get(2, b"")
            model.characters = characters if isinstance(characters, bytes) else b""
            model.space_prefix, model.merge_spaces = bool(normalizer.get(3, 1)), bool(normalizer.get(4, 1))
    if not model.tokens or model.kind not in (UNIGRAM, BPE):
        raise ValueError("it has no pieces, or is neither Unigram nor BPE")
    return model


def _fields(data: bytes) -> Iterator[tuple[int, bytes | int | float]]:
    """Field numbers and values of one message; 64-bit numbers are skipped."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == _VARINT:
            value, at = _varint(data, at)
            yield tag >> 3, value
        elif kind == _BYTES:
            length, at = _varint(data, at)
            if length > len(data) - at:
                raise ValueError("it is cut short")
            yield tag >> 3, data[at : at + length]
            at += length
        elif kind == _FIXED32:
            yield tag >> 3, struct.unpack_from("<f", data, at)[0]
            at += 4
        elif kind == _FIXED64:
            at += 8
        else:
            raise ValueError(f"a field of the kind {kind}")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise ValueError("it is cut short")
        byte, at = data[at], at + 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError("a number that does not end")
