"""Streaming: no half characters on the way, and in total exactly what decode gives."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from athanor.tokenizer import StreamDecoder, Tokenizer


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=40))
def test_valid_text_never_shows_a_replacement(text: str, tokenizer: Tokenizer) -> None:
    stream = StreamDecoder(tokenizer)
    shown = ""
    for token_id in tokenizer.encode(text):
        shown += stream.push(token_id)
        assert text.startswith(shown)
    assert shown + stream.finish() == text


@settings(max_examples=300, deadline=None)
@given(ids=st.lists(st.one_of(st.integers(0, 767), st.integers(0x80, 0xFF)), max_size=40))
def test_any_ids_give_what_decode_gives(ids: list[int], tokenizer: Tokenizer) -> None:
    stream = StreamDecoder(tokenizer)
    assert "".join(map(stream.push, ids)) + stream.finish() == tokenizer.decode(ids)


def test_a_character_in_pieces(tokenizer: Tokenizer) -> None:
    stream = StreamDecoder(tokenizer)
    assert [stream.push(byte) for byte in "龘a".encode()] == ["", "", "龘", "a"]
    assert stream.push(0xE4) == ""
    assert stream.finish() == "\ufffd"
    assert stream.push(ord("b")) == "b"  # and it can be used again
    assert stream.push(0xE4) + stream.push(tokenizer.end_of_turn_id) == "\ufffd<|im_end|>"
