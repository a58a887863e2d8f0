"""The content of a `tokenizer.json` for each kind of tokenizer, made of its parts.

Every kind that is read from elsewhere (GGUF, a list of words, a sentencepiece file) becomes such a document first, so
that one class encodes them all and each can be saved as a Hugging Face folder. Token types are those of sentencepiece
and llama.cpp.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

from athanor.base.errors import TokenizerError
from athanor.tokenizer.file_format import byte_level

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
BLANK = "▁"

_MOST_WORK = 1 << 28  # sum of the squared lengths of all tokens; Gemma's 262,144 take 2**24

Document = dict[str, Any]


def byte_level_bpe(
    vocabulary: Mapping[str, int], merges: Sequence[Sequence[str]], cut: Document, *, ignore_merges: bool = False
) -> Document:
    """GPT-2's kind. cut: the pre-tokenizer. ignore_merges: a piece that is a token needs no merges."""
    model = {"type": "BPE", "vocab": dict(vocabulary), "merges": list(merges), "ignore_merges": ignore_merges}
    return _document(model, pre_tokenizer=cut, decoder=byte_level("ByteLevel"))


def sentencepiece_bpe(
    tokens: Sequence[str], merges: Sequence[Sequence[str]], *, unknown: str | None, space_prefix: bool
) -> Document:
    """Llama 2's kind: merges over the whole text with `▁` for blanks, bytes `<0x0A>` for what has no token."""
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": BLANK}
    prepend = [{"type": "Prepend", "prepend": BLANK}] if space_prefix else []
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if space_prefix else []
    back = {"type": "Replace", "pattern": {"String": BLANK}, "content": " "}
    return _document(
        {
            "type": "BPE",
            "unk_token": unknown,
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": {token: index for index, token in enumerate(tokens)},
            "merges": list(merges),
        },
        normalizer={"type": "Sequence", "normalizers": [*prepend, replace]},
        decoder={"type": "Sequence", "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip]},
    )


def merges_of_scores(tokens: Sequence[str], scores: Sequence[float], types: Sequence[int]) -> list[list[str]]:
    """The merges that sentencepiece's scores imply: any two tokens that make a third, the best third first.

    Raises TokenizerError for tokens so long that finding them would take minutes.
    """
    if sum(len(token) ** 2 for token in tokens) > _MOST_WORK:
        raise TokenizerError("The tokens are too long for a tokenizer.", "The file is broken or hostile.")
    parts = {token for token, kind in zip(tokens, types, strict=True) if kind in (NORMAL, UNUSED)}
    found = [
        (-score, -cut, token)
        for token, score, kind in zip(tokens, scores, types, strict=True)
        if kind == NORMAL
        for cut in range(1, len(token))
        if token[:cut] in parts and token[cut:] in parts
    ]
    return [[token[:-cut], token[-cut:]] for _, cut, token in sorted(found)]


def unigram(
    tokens: Sequence[str],
    scores: Sequence[float],
    *,
    unknown_id: int | None,
    byte_fallback: bool,
    characters: bytes,
    space_prefix: bool,
    merge_spaces: bool,
) -> Document:
    """T5's kind. characters: sentencepiece's table of replacements (precompiled_charsmap), empty for none."""
    table = base64.b64encode(characters).decode()
    normalizers: list[Document] = [{"type": "Precompiled", "precompiled_charsmap": table}] if characters else []
    if merge_spaces:
        normalizers.append({"type": "Strip", "strip_left": True, "strip_right": True})
        normalizers.append({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "})
    scheme = "always" if space_prefix else "never"
    metaspace = {"type": "Metaspace", "replacement": BLANK, "prepend_scheme": scheme, "split": False}
    vocabulary = [list(pair) for pair in zip(tokens, scores, strict=True)]
    return _document(
        {"type": "Unigram", "unk_id": unknown_id, "vocab": vocabulary, "byte_fallback": byte_fallback},
        normalizer={"type": "Sequence", "normalizers": normalizers} if normalizers else None,
        pre_tokenizer=metaspace,
        decoder=metaspace,
    )


def wordpiece(tokens: Sequence[str], *, unknown: str, lowercase: bool, strip_accents: bool) -> Document:
    """BERT's kind: `tokens` with `##` before those that go on a word."""
    normalizer = {"clean_text": True, "handle_chinese_chars": True, "strip_accents": strip_accents}
    return _document(
        {
            "type": "WordPiece",
            "unk_token": unknown,
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": {token: index for index, token in enumerate(tokens)},
        },
        normalizer={"type": "BertNormalizer", "lowercase": lowercase, **normalizer},
        pre_tokenizer={"type": "BertPreTokenizer"},
        decoder={"type": "WordPiece", "prefix": "##", "cleanup": True},
    )


def added_token(index: int, content: str, special: bool) -> Document:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": index, "content": content, **flags, "special": special}


def wrapping(start: Sequence[tuple[str, int]], end: Sequence[tuple[str, int]]) -> Document | None:
    """The post-processor that puts control tokens (name, id) before and after a text, None for none."""
    if not start and not end:
        return None

    def around(sequence: str, type_id: int) -> list[Document]:
        before = [{"SpecialToken": {"id": name, "type_id": type_id}} for name, _ in start]
        after = [{"SpecialToken": {"id": name, "type_id": type_id}} for name, _ in end]
        return [*before, {"Sequence": {"id": sequence, "type_id": type_id}}, *after]

    return {
        "type": "TemplateProcessing",
        "single": around("A", 0),
        "pair": [*around("A", 0), *around("B", 1)],
        "special_tokens": {name: {"id": name, "ids": [i], "tokens": [name]} for name, i in [*start, *end]},
    }


def wrapped_with(post_processor: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Ids that a post-processor puts before and after a text."""
    kind = post_processor["type"] if post_processor else None
    if kind == "Sequence":
        inner = [wrapped_with(each) for each in post_processor["processors"]]
        return sum((before for before, _ in inner), ()), sum((after for _, after in inner), ())
    if kind in ("BertProcessing", "RobertaProcessing"):
        return (int(post_processor["cls"][1]),), (int(post_processor["sep"][1]),)
    before: list[int] = []
    after: list[int] = []
    if kind == "TemplateProcessing":
        place = before
        for item in post_processor["single"]:
            if "Sequence" in item:
                place = after
            else:
                place += [int(i) for i in post_processor["special_tokens"][item["SpecialToken"]["id"]]["ids"]]
    return tuple(before), tuple(after)


def _document(model: Document, *, normalizer: Any = None, pre_tokenizer: Any = None, decoder: Any = None) -> Document:
    return {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": None,
        "decoder": decoder,
        "model": model,
    }
