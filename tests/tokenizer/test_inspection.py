"""Statistics and pictures of a tokenizer."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from athanor.tokenizer import Tokenizer
from athanor.tokenizer.inspection import compression_by_language, show_bytes, visualise


def test_compression_by_language(tokenizer: Tokenizer, sentences: list[str]) -> None:
    texts = {"zh": sentences[1::2], "en": sentences[::2], "none": []}
    result = compression_by_language(tokenizer, texts)
    english = result["languages"]["en"]
    assert english["tokens"] == sum(len(tokenizer.encode(text)) for text in texts["en"])
    assert english["bytes_per_token"] == english["bytes"] / english["tokens"] > 3
    chinese = result["languages"]["zh"]
    assert chinese["tokens_per_character"] == chinese["tokens"] / sum(map(len, texts["zh"])) < 1
    assert result["languages"]["none"]["bytes_per_token"] is None
    assert list(result["languages"]) == ["en", "none", "zh"]
    assert result["vocabulary"]["size"] == 768
    used = {token_id for text in sentences for token_id in tokenizer.encode(text)}
    assert result["vocabulary"]["unused"] == 768 - len(tokenizer.control) - len(used)
    json.dumps(result, allow_nan=False)


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=40))
def test_segments_make_up_the_text(text: str, tokenizer: Tokenizer) -> None:
    segments = visualise(tokenizer, text)
    assert b"".join(segment.data for segment in segments).decode() == text
    assert [segment.token_id for segment in segments] == tokenizer.encode(text)
    assert all(segment.shown.isprintable() for segment in segments)


def test_pieces_of_characters_and_of_text(tokenizer: Tokenizer) -> None:
    segments = visualise(tokenizer, "the 9龘")
    assert [segment.shown for segment in segments] == ["the", " ", "9", "⟨E9⟩", "⟨BE⟩", "⟨98⟩"]
    assert [segment.starts_piece for segment in segments] == [True, True, True, True, False, False]


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        (b"ab c", "ab c"),
        ("你".encode(), "你"),
        (b" \xe4\xbd", " ⟨E4 BD⟩"),
        (b"\xa0x\xe4", "⟨A0⟩x⟨E4⟩"),
        (b"\r\n", "⟨0D 0A⟩"),
        (b"\x1b[2J", "⟨1B⟩[2J"),
        (b"", ""),
    ],
)
def test_show_bytes(data: bytes, shown: str) -> None:
    assert show_bytes(data) == shown
