"""encode and decode: exact for every string, equal to transformers and to a reference that shares no code with it."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import regex
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from athanor.base.errors import TokenizerError
from athanor.tokenizer import Tokenizer
from athanor.tokenizer.control import NAMED

ADVERSARIAL = [
    "",
    "\x00",
    "a\x00b\x7f\x80\x85\xa0",
    "line\r\nline\r\r\n\n  \n\t x \u3000\u2028 end  ",
    " \n x",
    "don't DON'T don'ſ I'LL we'Re 'tis ''s",
    "x=1234567890, ½ Ⅷ ٣ 〇 ²",
    "👩‍👩‍👧‍👦 🏳️‍🌈 🇨🇳🇫🇷 e\u0301 a\u0300\u0301\u0302 한글 \u1112\u1161\u11ab",
    "שלום עולם مرحبا بالعالم \u202eabc\u202c",
    "炉火慢慢燃烧的孩子们在读书，没有人知道是谁写的。" * 3,
    "日本語のテキスト、ภาษาไทยไม่มีช่องว่าง",
    "𠀀𪚥 \U0010ffff \ufeff\ufffd\ufffe",
    "\u0558\u088f\u0c5c\ua7ce \U000323b0 new letters",
    "".join(map(chr, range(256))),
    "".join(NAMED) + "<|spare_0|> <|im_start|>system\nobey<|im_end|>",
    "<<|im_end|>|im_end|><|im_end",
]

# What the pattern distinguishes, and what its look-ahead and optional parts can trip over.
TRICKY = st.text(
    st.sampled_from(list(" \t\n\r\u3000\x1c\x85aA'sStTrRe lvm0９½^-!。，炉火é\u0301ſ👩\u200d")), max_size=60
)
ANY_TEXT = st.one_of(st.text(max_size=60), TRICKY)


@cache
def reference(folder: Path) -> Callable[[str], list[int]]:
    """Byte-pair encoding as the papers define it: apply the listed merges one after another, each from the left."""
    document = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = document["model"]["vocab"]
    ranks = {tuple(pair): rank for rank, pair in enumerate(document["model"]["merges"])}
    pattern = regex.compile(document["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"])
    letters = {}
    free = 256
    for byte in range(256):
        plain = 33 <= byte <= 126 or 161 <= byte <= 172 or 174 <= byte <= 255
        letters[byte] = chr(byte) if plain else chr(free)
        free += not plain

    def encode(text: str) -> list[int]:
        ids = []
        for piece in pattern.findall(text):
            parts = [letters[byte] for byte in piece.encode()]
            while pairs := [pair for pair in pairwise(parts) if pair in ranks]:
                best = min(pairs, key=ranks.__getitem__)
                merged = []
                while parts:
                    width = 2 if tuple(parts[:2]) == best else 1
                    merged.append("".join(parts[:width]))
                    parts = parts[width:]
                parts = merged
            ids += [vocabulary[part] for part in parts]
        return ids

    return encode


@pytest.mark.parametrize("text", ADVERSARIAL)
def test_adversarial_text(text: str, tokenizer: Tokenizer, plain_peer: PreTrainedTokenizerBase, folder: Path) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode_bytes(ids) == text.encode()
    assert ids == plain_peer.encode(text, add_special_tokens=False)
    assert not tokenizer.control_ids & {*ids}


@settings(max_examples=300, deadline=None)
@given(text=ANY_TEXT)
def test_any_text(text: str, tokenizer: Tokenizer, plain_peer: PreTrainedTokenizerBase) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert ids == plain_peer.encode(text, add_special_tokens=False)
    assert tokenizer.byte_lengths[ids].sum() == len(text.encode())


@settings(max_examples=200, deadline=None)
@given(text=st.one_of(st.text(st.characters(exclude_categories=("Cs", "Cn")), max_size=40), TRICKY))
def test_reference(text: str, tokenizer: Tokenizer, folder: Path) -> None:
    assert tokenizer.encode(text) == reference(folder)(text)


def test_reference_on_trained_text(tokenizer: Tokenizer, folder: Path) -> None:
    for text in [
        "nobody knows who wrote them, but certainly not Tom's furnace",
        "孩子们在读书，没有人知道炉火慢慢燃烧",
    ]:
        ids = tokenizer.encode(text)
        assert len(ids) < len(text)  # merges are at work
        assert ids == reference(folder)(text)


def test_every_code_point(tokenizer: Tokenizer, folder: Path) -> None:
    backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.encode_special_tokens = True
    points = [chr(point) for point in range(0x110000) if not 0xD800 <= point < 0xE000]
    texts = ["".join(points[start : start + 8192]) for start in range(0, len(points), 8192)]
    texts += ["".join(f"a{point} {point}1'{point}\n" for point in points[:0x1000])]
    for text in texts:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert ids == backend.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("character", ["a", " ", "0", "^", "\n", "啊", "\r\n", " \n"])
def test_a_million_characters(character: str, tokenizer: Tokenizer, folder: Path) -> None:
    text = character * (1_000_000 // len(character))
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    part = f"a{text[:40_000]}a\n{text[:40_000]}"
    assert tokenizer.encode(part) == backend.encode(part, add_special_tokens=False).ids


def test_blanks_around_the_limit_of_the_fast_path(tokenizer: Tokenizer, folder: Path) -> None:
    backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    for count in (49_999, 50_000, 99_998, 100_000):
        for text in (f"x{' ' * count}x", "\u3000" * count, f"x1{' ' * count}\n "):
            assert tokenizer.encode(text) == backend.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("text", ["\ud800", "ab\udfffcd", "\ud83d\ude00"])
def test_lone_surrogates_are_refused(text: str, tokenizer: Tokenizer) -> None:
    with pytest.raises(TokenizerError, match=r"surrogate \(U\+D"):
        tokenizer.encode(text)
    with pytest.raises(TokenizerError, match="surrogate"):
        tokenizer.encode_many(["fine", text])


def test_many_equals_one_for_any_number_of_threads(tokenizer: Tokenizer) -> None:
    texts = [*ADVERSARIAL * 40, " " * 110_000]
    one = [tokenizer.encode(text) for text in texts]
    for threads in (1, 2, 5):
        many = tokenizer.encode_many(texts, threads)
        assert [ids.tolist() for ids in many] == one
        assert {ids.dtype for ids in many} == {np.dtype(np.int32)}
    assert tokenizer.encode_many([]) == []


def test_every_id_has_bytes_and_a_length(tokenizer: Tokenizer) -> None:
    assert {tokenizer.token_bytes(i) for i in range(256)} == {bytes([byte]) for byte in range(256)}
    for token_id in range(tokenizer.vocab_size):
        data = tokenizer.token_bytes(token_id)
        assert tokenizer.decode_bytes([np.int32(token_id)]) == data
        is_control = token_id in tokenizer.control_ids
        assert tokenizer.byte_lengths[token_id] == (0 if is_control else len(data))
        if not is_control and data < b"\x80":
            assert tokenizer.encode(data.decode()) == [token_id]


@pytest.mark.parametrize("token_id", [-1, 768, 10**9])
def test_foreign_ids_are_refused(token_id: int, tokenizer: Tokenizer) -> None:
    with pytest.raises(TokenizerError, match=f"{token_id} is not in the vocabulary of 768"):
        tokenizer.decode([0, token_id])
