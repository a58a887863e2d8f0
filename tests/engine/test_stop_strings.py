"""Text ends at its stop strings, wherever tokens begin and end, and shows no part of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from athanor.engine.engine import Engine
from athanor.engine.requests import Request
from athanor.engine.sampling import Sampling
from athanor.engine.text import StopText
from athanor.models.decoder import Decoder
from athanor.tokenizer import Tokenizer


def test_stop_strings_end_text_across_tokens(model: Decoder, tokenizer: Tokenizer) -> None:
    engine = Engine.of(model, tokenizer)
    settings = Sampling(temperature=1.0, top_p=1.0, seed=3, max_tokens=50, allowed_tokens=tuple(range(97, 123)))
    free = engine.generate([Request([1], settings)])[0][0]
    assert len(free.text) == 50
    stop = free.text[20:23]
    shown = ""
    for event in engine.submit(Request([1], replace(settings, stop=("never there", stop)))):
        shown += event.text
        assert not any(shown.endswith(stop[:n]) for n in (1, 2, 3)) or event.finish_reason or shown in free.text
    place = free.text.index(stop)
    assert shown == free.text[:place]
    assert event.finish_reason == "stop"
    late = engine.generate([Request([1], replace(settings, stop=(free.text[0],), min_tokens=5))])[0][0]
    assert late.text.startswith(free.text[:4])


class Letters:
    """One text a token."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = texts

    def push(self, token_id: int) -> str:
        return self.texts[token_id]

    def finish(self) -> str:
        return ""


@pytest.mark.parametrize(
    ("texts", "stop", "shown", "stops"),
    [
        (["a", "b", "STO", "P", "c"], ["STOP"], ["a", "b", "", ""], True),
        (["a", "ST", "x", "STOPPED"], ["STOP"], ["a", "", "STx", ""], True),
        (["ab", "ab", "aab"], ["abaab"], ["", "ab", ""], True),
        (["one ST"], ["STOP"], ["one ", "ST"], False),
        (["x|", "|y"], ["||", "|y"], ["x", ""], True),
    ],
)
def test_no_part_of_a_stop_string_is_shown(texts: list[str], stop: list[str], shown: list[str], stops: bool) -> None:
    text = StopText(Letters(texts), stop)
    given, stopped = [], False
    for token in range(len(texts)):
        part, stopped = text.push(token)
        given.append(part)
        if stopped:
            break
    if not stopped:
        given.append(text.finish()[0])
    assert (given, stopped) == (shown, stops)


@pytest.mark.parametrize(
    ("texts", "shown", "stops"),
    [
        (["ST", "OP"], ["", ""], True),
        (["STOP", "x"], ["STOP", "x"], False),
        (["aSTOPS", "TOP"], ["aSTOP", ""], True),
    ],
)
def test_a_stop_string_counts_where_it_ends(texts: list[str], shown: list[str], stops: bool) -> None:
    text = StopText(Letters(texts), ["STOP"])
    first, _ = text.push(0, watched=False)
    second, stopped = text.push(1)
    assert ([first, second], stopped) == (shown, stops)
