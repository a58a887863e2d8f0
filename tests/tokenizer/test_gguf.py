"""Tokenizers in GGUF metadata: what is written is read back to the same ids."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any
from unicodedata import normalize

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from athanor.base.errors import TokenizerError
from athanor.tokenizer import Tokenizer
from athanor.tokenizer.cuts import PRE_TOKENIZERS
from athanor.tokenizer.foreign import ForeignTokenizer
from athanor.tokenizer.gguf import from_gguf
from athanor.tokenizer.gguf_writing import to_gguf
from athanor.tokenizer.training import train_tokenizer

HARD = [
    "", " ", "  two  blanks ", "\n\n\n", "\r\n line\r\n\r\n\tend", "a\u00a0b\u3000c", "naïve café cafe\u0301",
    "12345 ½ ٣ 六",     "It's WE'LL they'RE 'tis I'M", "火和水，没有人知道。", "ไม่มีใครรู้ ကမ္ဘာ हिन्दी", "עברית العربية",
    "👨‍👩‍👧‍👦🏳️‍🌈 x🙂y",
    "한국어 日本語カタカナ",
    "for (int i=0;i<10;++i) {\n        x += 3.14e-5; // ok\n}\n", "<|im_start|>user\n<|im_end|> <s></s> <0x0A>",
    "\u200b\ufeff\x00\x07", "snake_case CamelCase HTTPServer XMLÄußerung", "$1,234.56 #!/usr/bin/env @x %&*()",
    "ﬁ Ⅷ ² ǅ", "▁x ▁",
]  # fmt: skip


def test_our_tokenizer_comes_back_from_gguf(tokenizer: Tokenizer, sentences: list[str]) -> None:
    metadata = to_gguf(tokenizer, vocab_size=tokenizer.vocab_size + 3)
    assert len(metadata["tokenizer.ggml.tokens"]) == tokenizer.vocab_size + 3
    back = from_gguf(metadata, "model.gguf")
    for text in [*HARD, *sentences[:20]]:
        assert back.encode(text) == tokenizer.encode(text)
    messages = [{"role": "user", "content": "Hello 火"}]
    ours = tokenizer.control
    assert back.conversation(messages, None, True)[0] == ours["<|im_start|>"]
    assert back.stop_ids == tokenizer.stop_ids
    with pytest.raises(TokenizerError, match="the model only 4"):
        to_gguf(tokenizer, vocab_size=4)
    with pytest.raises(TokenizerError, match="without merges"):
        to_gguf(train_tokenizer(["a"], 320))


def hugging_face(cut: Any, normalizer: Any = None) -> dict[str, Any]:
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers, trainers

    made = Backend(models.BPE())
    made.pre_tokenizer, made.decoder = cut, decoders.ByteLevel()
    if normalizer:
        made.normalizer = normalizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet, special_tokens=["<|endoftext|>"])
    made.train_from_iterator(HARD * 2, trainer)
    made.add_tokens(["<tool>"])
    return dict(json.loads(made.to_str()))


def test_a_byte_level_tokenizer_keeps_its_ids_through_gguf() -> None:
    """Under llama.cpp's name of its cuts, however they are written down in the folder."""
    from tokenizers import Regex, normalizers, pre_tokenizers

    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    split = pre_tokenizers.Split(Regex(PRE_TOKENIZERS["llama-bpe"]["pretokenizers"][0]["pattern"]["Regex"]), "isolated")
    cuts = {
        "gpt-2": pre_tokenizers.ByteLevel(add_prefix_space=False),
        "smollm": pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        ),
        "dbrx": pre_tokenizers.Sequence([split, level]),
    }
    for name, cut in cuts.items():
        there = ForeignTokenizer(
            hugging_face(cut, normalizers.NFC()), stop_ids=(0,), template="x", names={"eos_token": "<|endoftext|>"}
        )
        metadata = to_gguf(there, there.vocab_size + 2)
        assert metadata["tokenizer.ggml.pre"] == name
        back = from_gguf(metadata, "model.gguf")
        for text in HARD:
            assert back.encode(normalize("NFC", text)) == there.encode(text)
        assert (back.stop_ids, back.template, back.start_ids) == ((0,), "x", ())
    strange = ForeignTokenizer(hugging_face(pre_tokenizers.Sequence([pre_tokenizers.Split("e", "isolated"), level])),
                               stop_ids=(), template=None, names={})  # fmt: skip
    with pytest.raises(TokenizerError, match="no name"):
        to_gguf(strange)


def llama(prefix: bool = True) -> dict[str, Any]:
    """A sentencepiece vocabulary by hand: scores fall with the id."""
    control = ["<unk>", "<s>", "</s>"]
    pieces = ["▁t", "he", "▁the", "in", "er", "▁a", "▁▁", "▁▁▁▁", "▁in", "ther", "▁火", "oo", "ooo", "oooo"]
    letters = sorted({letter for piece in pieces for letter in piece})
    names = [*control, *(f"<0x{byte:02X}>" for byte in range(256)), "<tool>", *pieces, *letters]
    types = [2, 3, 3] + [6] * 256 + [4] + [1] * (len(pieces) + len(letters))
    return {
        "tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": names, "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.scores": [0.0] * 260 + [-float(i) for i in range(len(names) - 260)],
        "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_space_prefix": prefix,
    }  # fmt: skip


def greedy(text: str, metadata: dict[str, Any]) -> list[int]:
    """Sentencepiece's rule in its plainest form: of all neighbours that make a token, join the best, leftmost first."""
    names, scores = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.scores"]
    ids = {name: index for index, name in enumerate(names)}
    parts = list((("▁" if text and metadata["tokenizer.ggml.add_space_prefix"] else "") + text).replace(" ", "▁"))
    while joins := [(-scores[ids[a + b]], i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in ids]:
        at = min(joins)[1]
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    found = [[ids[part]] if part in ids else [ids[f"<0x{byte:02X}>"] for byte in part.encode()] for part in parts]
    return [index for piece in found for index in piece]


@pytest.mark.parametrize("prefix", [True, False])
@given(text=st.text("thein ro 火x👨\n", max_size=24))
def test_scores_imply_sentencepieces_merges(prefix: bool, text: str) -> None:
    metadata = llama(prefix)
    tokenizer = from_gguf(metadata, "model.gguf")
    assert tokenizer.encode(text) == greedy(text, metadata)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    back = from_gguf(to_gguf(tokenizer), "model.gguf")
    assert back.encode(text) == tokenizer.encode(text)


def test_a_llama_tokenizer_from_gguf() -> None:
    tokenizer = from_gguf(llama(), "model.gguf")
    assert (tokenizer.start_ids, tokenizer.stop_ids) == ((1,), (2,))
    assert tokenizer.names["bos_token"] == "<s>"
    assert tokenizer.token_bytes(262) == b" the"
    assert not {*tokenizer.encode("<s></s><unk>")} & {0, 1, 2}
    assert 259 in tokenizer.encode("the <tool>")
    assert from_gguf({**llama(), "tokenizer.ggml.add_bos_token": False}, "model.gguf").start_ids == ()


def test_unigram_and_wordpiece_from_gguf() -> None:
    pieces = ["<pad>", "</s>", "<unk>", "▁", "▁the", "t", "h", "e", "▁fur", "nace", "s"]
    t5 = {
        "tokenizer.ggml.model": "t5", "tokenizer.ggml.tokens": pieces, "tokenizer.ggml.token_type": [3, 3, 2] + [1] * 8,
        "tokenizer.ggml.scores": [0.0, 0.0, 0.0, *(-float(i) for i in range(1, 9))],
        "tokenizer.ggml.add_space_prefix": True, "tokenizer.ggml.remove_extra_whitespaces": True,
    }  # fmt: skip
    tokenizer = from_gguf(t5, "model.gguf")
    assert tokenizer.encode("the  furnace ") == [4, 8, 9]
    assert (tokenizer.decode([4, 8, 9]), tokenizer.start_ids, tokenizer.end_ids) == ("the furnace", (), (1,))
    assert 1 not in tokenizer.encode("</s>")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "▁the", "▁fur", "nace"]
    bert = {
        "tokenizer.ggml.model": "bert", "tokenizer.ggml.tokens": words, "tokenizer.ggml.token_type": [3] * 4 + [1] * 3,
        "tokenizer.ggml.bos_token_id": 2, "tokenizer.ggml.seperator_token_id": 3, "tokenizer.ggml.unknown_token_id": 1,
    }  # fmt: skip
    tokenizer = from_gguf(bert, "model.gguf")
    assert tokenizer.encode("The Furnace xyz") == [4, 5, 6, 1]
    assert (tokenizer.start_ids, tokenizer.end_ids) == ((2,), (3,))


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 2**40) | st.floats() | st.text(max_size=5) | st.binary(max_size=3),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=6,
)
_KEYS = [
    "model", "pre", "tokens", "token_type", "scores", "merges", "bos_token_id", "eos_token_id", "unknown_token_id",
    "add_bos_token", "add_space_prefix", "precompiled_charsmap", "remove_extra_whitespaces", "normalizer.lowercase",
]  # fmt: skip


@settings(max_examples=300)
@given(data=st.data(), model=st.sampled_from(["llama", "gpt2", "t5", "bert", "gemma4"]), key=st.sampled_from(_KEYS))
def test_hostile_metadata_is_refused_with_a_sentence(data: st.DataObject, model: str, key: str) -> None:
    metadata = {**llama(), "tokenizer.ggml.model": model, "tokenizer.ggml.pre": "gpt-2"}
    metadata |= {"tokenizer.ggml.merges": ["t h", "th e"], "tokenizer.ggml.seperator_token_id": 2}
    value = metadata.get(f"tokenizer.ggml.{key}")
    if isinstance(value, list) and data.draw(st.booleans()):
        value = list(value)
        for _ in range(data.draw(st.integers(1, 3))):
            value[data.draw(st.integers(0, len(value) - 1))] = data.draw(_VALUES | st.sampled_from(value))
    else:
        value = data.draw(_VALUES | st.lists(st.integers(-128, 255), min_size=4, max_size=40))
    metadata[f"tokenizer.ggml.{key}"] = value
    try:
        tokenizer = from_gguf(metadata, "model.gguf")
        tokenizer.decode(tokenizer.encode("the 火 <s>"))
    except TokenizerError:
        return


def test_endless_tokens_are_refused_at_once() -> None:
    metadata = llama()
    metadata["tokenizer.ggml.tokens"] = [*metadata["tokenizer.ggml.tokens"][:-1], "a" * 10**6]
    with pytest.raises(TokenizerError, match="too long"):
        from_gguf(metadata, "model.gguf")
    metadata["tokenizer.ggml.tokens"] = [*metadata["tokenizer.ggml.tokens"][:-1], "<s>"]
    with pytest.raises(TokenizerError, match="twice"):
        from_gguf(metadata, "model.gguf")
