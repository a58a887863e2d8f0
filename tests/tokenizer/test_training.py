"""Training: the same texts give the same file, sizes are as asked for, long Han runs are cut only for counting."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from athanor.base.errors import TokenizerError
from athanor.tokenizer import Tokenizer, train_tokenizer
from athanor.tokenizer.merges import MAX_TOKEN_BYTES, merges_of
from athanor.tokenizer.pretokenization import HAN_RUN_LIMIT, cap_han_runs, has_huge_whitespace_run, pre_tokens


def test_same_texts_same_file(tokenizer: Tokenizer, sentences: list[str], tmp_path: Path) -> None:
    again = train_tokenizer(reversed(sentences), vocab_size=768)
    again.save(tmp_path / "again")
    tokenizer.save(tmp_path / "first")
    assert (tmp_path / "again/tokenizer.json").read_bytes() == (tmp_path / "first/tokenizer.json").read_bytes()
    assert again.fingerprint == tokenizer.fingerprint
    assert train_tokenizer(sentences[1:], vocab_size=768).fingerprint != tokenizer.fingerprint


def test_same_file_with_another_hash_seed_and_thread_count(sentences: list[str], tokenizer: Tokenizer) -> None:
    program = (
        "import sys; from athanor.tokenizer import train_tokenizer; "
        "print(train_tokenizer(sys.stdin.read().split('\\0'), vocab_size=768).fingerprint)"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "99", "RAYON_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "-c", program],
        input="\0".join(sentences),
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.strip() == tokenizer.fingerprint


def test_layout_of_the_vocabulary(tokenizer: Tokenizer) -> None:
    assert tokenizer.vocab_size == 768
    assert min(tokenizer.control.values()) == 768 - len(tokenizer.control)
    assert sum(name.startswith("<|spare_") for name in tokenizer.control) >= 32
    assert [tokenizer.token_bytes(i) for i in range(256)] == [bytes([byte]) for byte in range(256)]


def test_a_small_corpus_gives_a_smaller_vocabulary() -> None:
    tokenizer = train_tokenizer(["abc abd"], vocab_size=8192)
    assert tokenizer.vocab_size == 384
    assert tokenizer.decode(tokenizer.encode("abc 你好")) == "abc 你好"


@pytest.mark.parametrize("size", [0, 256, 319, 1000, -64])
def test_impossible_sizes(size: int) -> None:
    with pytest.raises(TokenizerError, match="multiple of 64"):
        train_tokenizer(["text"], vocab_size=size)


@pytest.mark.parametrize("texts", [[], [""], ["", ""]])
def test_no_text(texts: list[str]) -> None:
    with pytest.raises(TokenizerError, match="no text"):
        train_tokenizer(texts)


def test_broken_text_is_named() -> None:
    with pytest.raises(TokenizerError, match="Text 1 holds a lone surrogate"):
        train_tokenizer(["fine", "\ud800"])


def test_sample_is_chosen_by_content_and_holds_the_limit(sentences: list[str]) -> None:
    part = train_tokenizer(sentences, vocab_size=512, sample_bytes=20_000)
    assert part.fingerprint == train_tokenizer(sentences[::-1], vocab_size=512, sample_bytes=20_000).fingerprint
    assert part.fingerprint != train_tokenizer(sentences, vocab_size=512).fingerprint
    huge = "word and " * 100_000  # one text larger than the sample still leaves a part of it
    assert len(train_tokenizer([huge], vocab_size=512, sample_bytes=1000).encode(" word and")) == 2


def test_no_token_is_longer_than_the_cap_in_han(sentences: list[str]) -> None:
    clause = "孩子们在读书没有人知道炉火慢慢燃烧"
    tokenizer = train_tokenizer([f"{clause}。"] * 50 + sentences, vocab_size=2048)
    tokens = [tokenizer.token_bytes(i).decode(errors="ignore") for i in range(tokenizer.vocab_size)]
    assert max(sum("一" <= character <= "龥" for character in token) for token in tokens) == HAN_RUN_LIMIT
    assert pre_tokens(clause) == [clause]  # encoding knows no cap
    assert len(tokenizer.encode(clause)) <= 4


def test_repetitive_and_odd_texts_train() -> None:
    texts = [
        "a" * 10_000,
        " " * 10_000,
        "\n" * 999,
        "ab" * 5000,
        "aab" * 5000,
        "\x00\x01",
        "🏳️‍🌈" * 500,
        "abcabcab" * 300,
    ]
    tokenizer = train_tokenizer(texts, vocab_size=512)
    for text in texts:
        assert tokenizer.decode(tokenizer.encode(text)) == text
        assert len(tokenizer.encode(text)) < len(text.encode())
    assert tokenizer.byte_lengths.max() == MAX_TOKEN_BYTES


@given(st.text(st.sampled_from("中文字ab ，。1\n"), max_size=80))
def test_caps_cut_only_inside_han_runs(text: str) -> None:
    parts = cap_han_runs(text)
    assert "".join(parts) == text
    cut = [piece for part in parts for piece in pre_tokens(part)]
    assert "".join(cut) == text
    starts, capped_starts = _starts(pre_tokens(text)), _starts(cut)
    assert starts <= capped_starts
    for at in capped_starts - starts:
        assert {*text[at - HAN_RUN_LIMIT : at + 1]} <= {*"中文字"}


def _starts(pieces: list[str]) -> set[int]:
    starts, at = set(), 0
    for piece in pieces:
        starts.add(at)
        at += len(piece)
    return starts


def test_huge_runs_of_blanks_are_seen() -> None:
    assert has_huge_whitespace_run("x" * 30_001 + " \n" * 50_000)
    assert not has_huge_whitespace_run(" " * 49_999 + "x" + " " * 49_999)
    assert not has_huge_whitespace_run("")


def test_tokens_that_merging_cannot_make_are_refused() -> None:
    single = [bytes([byte]) for byte in range(256)]
    assert merges_of([*single, b"ab", b"abc"]) == [(b"a", b"b"), (b"ab", b"c")]
    for bad in ([b"abc"], [b"ab", b"ab"], [b""], [b"ab", b"bcd"], [b"a" * 65]):
        with pytest.raises(TokenizerError):
            merges_of([*single, *bad])
