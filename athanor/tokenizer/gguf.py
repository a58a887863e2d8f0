"""Tokenizers in GGUF metadata, as llama.cpp reads and writes them.

The metadata is a plain dict of the keys `tokenizer.*`; the file around it is the business of `models.gguf`. What is
read is not trusted: whatever does not fit is a TokenizerError.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from athanor.base.errors import TokenizerError
from athanor.tokenizer.cuts import ADD_BOS, IGNORE_MERGES, PRE_TOKENIZERS
from athanor.tokenizer.documents import (
    BLANK,
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    USER_DEFINED,
    Document,
    added_token,
    byte_level_bpe,
    merges_of_scores,
    sentencepiece_bpe,
    unigram,
    wordpiece,
    wrapping,
)
from athanor.tokenizer.foreign import ForeignTokenizer
from athanor.tokenizer.sentencepiece import BPE, SentencePiece

_KEY = "tokenizer.ggml."
_MOST_TOKENS, _MOST_CHARACTERS = 1 << 22, 1 << 26
_ROLES = {
    "bos": "bos",
    "eos": "eos",
    "pad": "padding",
    "unk": "unknown",
    "sep": "seperator",
    "cls": "cls",
}  # their spelling
_USUAL = {
    "llama": {"bos": 1, "eos": 2, "unk": 0},
    "t5": {"eos": 1, "unk": 2, "pad": 0},
    "bert": {"bos": 101, "unk": 100, "sep": 102, "pad": 0},
}
_ENDS = (
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>", "<|eom_id|>", "<EOT>",
    "[EOT]", "<｜end▁of▁sentence｜>", "<end_of_utterance>",
)  # fmt: skip
"""Control tokens that end an answer, whatever the metadata names."""


def from_gguf(metadata: Mapping[str, Any], place: str) -> ForeignTokenizer:
    """The tokenizer inside a GGUF file. Raises TokenizerError for a kind that is not read, or parts that do not fit."""
    try:
        return _from_gguf(metadata)
    except TokenizerError as error:
        raise TokenizerError(f"{place}: {error.message}", error.hint) from None


def _from_gguf(metadata: Mapping[str, Any]) -> ForeignTokenizer:
    kind = metadata.get(_KEY + "model")
    makers = {"gpt2": _byte_level, "gemma4": _gemma4, "llama": _llama, "t5": _t5, "bert": _bert}
    if not isinstance(kind, str) or kind not in makers:
        raise TokenizerError(f"The tokenizer is of the kind {str(kind)[:80]!r}.", f"Read are {', '.join(makers)}.")
    tokens = _list(metadata, "tokens", str, None)
    if len(tokens) > _MOST_TOKENS or sum(map(len, tokens)) > _MOST_CHARACTERS or "" in tokens:
        raise TokenizerError("The tokenizer's tokens are too many, too long or empty.")
    if len({*tokens}) != len(tokens):
        raise TokenizerError("The tokenizer has the same token twice.")
    types = _list(metadata, "token_type", int, len(tokens), [NORMAL] * len(tokens))
    roles = _roles(metadata, kind, len(tokens))
    document = makers[kind](metadata, tokens, types, roles)
    special = {*roles.values()} if kind != "bert" else {*roles.values(), *_bracketed(tokens, types)}
    document["added_tokens"] = [
        added_token(index, token, each != USER_DEFINED or index in special)
        for index, (token, each) in enumerate(zip(tokens, types, strict=True))
        if each in (CONTROL, USER_DEFINED, UNKNOWN) or index in special
    ]
    document["post_processor"] = _ends(metadata, kind, tokens, roles)
    control = {token["content"]: token["id"] for token in document["added_tokens"] if token["special"]}
    stops = [roles[role] for role in ("eos", "eot", "eom") if role in roles]
    stops += [control[name] for name in _ENDS if name in control]
    template = metadata.get("tokenizer.chat_template")
    return ForeignTokenizer(
        document,
        stop_ids=tuple(dict.fromkeys(stops)),
        template=template if isinstance(template, str) else None,
        names={f"{role}_token": tokens[roles[role]] for role in _ROLES if role in roles},
    )


def _list(metadata: Mapping[str, Any], key: str, kind: type, length: int | None, default: Any = None) -> list[Any]:
    found = metadata.get(_KEY + key, default)
    if not isinstance(found, list) or not found or not all(type(item) is kind for item in found):
        raise TokenizerError(f"The metadata lacks {_KEY}{key}, or it is no list of {kind.__name__}.")
    if length is not None and len(found) != length:
        raise TokenizerError(f"{_KEY}{key} and the tokens do not fit together: {len(found)} and {length}.")
    return found


def _roles(metadata: Mapping[str, Any], kind: str, count: int) -> dict[str, int]:
    """Ids of the tokens with a role, those that llama.cpp takes for granted included."""
    roles = {role: index for role, index in _USUAL.get(kind, {}).items() if index < count}
    for role, name in {**_ROLES, "eot": "eot", "eom": "eom", "mask": "mask"}.items():
        index = metadata.get(f"{_KEY}{name}_token_id")
        if index is None:
            continue
        if type(index) is not int or not 0 <= index < count:
            raise TokenizerError(f"{_KEY}{name}_token_id and the {count} tokens do not fit together.")
        roles[role] = index
    return roles


def _ends(metadata: Mapping[str, Any], kind: str, tokens: Sequence[str], roles: Mapping[str, int]) -> Document | None:
    """What stands before and after a text."""
    pre = metadata.get(_KEY + "pre")
    start = _flag(metadata, "add_bos_token", kind in ("llama", "bert", "gemma4") or (kind == "gpt2" and pre in ADD_BOS))
    end = _flag(metadata, "add_eos_token", kind == "t5")
    separated = _flag(metadata, "add_sep_token", kind == "bert")
    before = [("bos" if "bos" in roles else "cls")] if start else []
    after = (["eos"] if end else []) + (["sep"] if separated and not end else [])
    return wrapping(
        *([(tokens[roles[role]], roles[role]) for role in side if role in roles] for side in (before, after))
    )


def _flag(metadata: Mapping[str, Any], key: str, default: bool) -> bool:
    found = metadata.get(_KEY + key, default)
    if type(found) is not bool:
        raise TokenizerError(f"{_KEY}{key} is not true or false.")
    return found


def _byte_level(
    metadata: Mapping[str, Any], tokens: Sequence[str], types: Sequence[int], roles: Mapping[str, int]
) -> Document:
    pre = metadata.get(_KEY + "pre", "default")
    if not isinstance(pre, str) or pre not in PRE_TOKENIZERS:
        known = ", ".join(PRE_TOKENIZERS)
        raise TokenizerError(f"The tokenizer cuts text as {str(pre)[:80]!r}.", f"Known are: {known}.")
    vocabulary = {token: index for index, token in enumerate(tokens)}
    cut, known_whole = PRE_TOKENIZERS[pre], pre in IGNORE_MERGES
    return byte_level_bpe(vocabulary, _merges(metadata), cut, ignore_merges=known_whole)


def _gemma4(
    metadata: Mapping[str, Any], tokens: Sequence[str], types: Sequence[int], roles: Mapping[str, int]
) -> Document:
    unknown = tokens[roles["unk"]] if "unk" in roles else None
    return sentencepiece_bpe(tokens, _merges(metadata), unknown=unknown, space_prefix=False)


def _merges(metadata: Mapping[str, Any]) -> list[list[str]]:
    merges = [merge.split(" ", 1) for merge in _list(metadata, "merges", str, None)]
    if any(len(merge) != 2 for merge in merges):
        raise TokenizerError("A merge does not name two tokens.")
    return merges


def _llama(
    metadata: Mapping[str, Any], tokens: Sequence[str], types: Sequence[int], roles: Mapping[str, int]
) -> Document:
    return sentencepiece_bpe(
        tokens,
        merges_of_scores(tokens, _scores(metadata, len(tokens)), types),
        unknown=tokens[roles["unk"]] if "unk" in roles else None,
        space_prefix=_flag(metadata, "add_space_prefix", True),
    )


def _scores(metadata: Mapping[str, Any], count: int) -> list[float]:
    scores: list[float] = _list(metadata, "scores", float, count)
    if not all(map(math.isfinite, scores)):
        raise TokenizerError("A token's score is not a number.")
    return scores


def _t5(metadata: Mapping[str, Any], tokens: Sequence[str], types: Sequence[int], roles: Mapping[str, int]) -> Document:
    characters = metadata.get(_KEY + "precompiled_charsmap") or []
    if not isinstance(characters, list) or not all(type(byte) is int and -128 <= byte < 256 for byte in characters):
        raise TokenizerError(f"{_KEY}precompiled_charsmap is no list of bytes.")
    return unigram(
        tokens,
        _scores(metadata, len(tokens)),
        unknown_id=roles.get("unk"),
        byte_fallback=BYTE in types,
        characters=bytes(byte % 256 for byte in characters),
        space_prefix=_flag(metadata, "add_space_prefix", False),
        merge_spaces=_flag(metadata, "remove_extra_whitespaces", False),
    )


def _bert(
    metadata: Mapping[str, Any], tokens: Sequence[str], types: Sequence[int], roles: Mapping[str, int]
) -> Document:
    """The file marks the beginnings of words; Hugging Face marks what goes on a word."""
    names = {*_bracketed(tokens, types), *roles.values()}
    spelled = [
        token if index in names else token[1:] if token.startswith(BLANK) and len(token) > 1 else f"##{token}"
        for index, token in enumerate(tokens)
    ]
    if "unk" not in roles:
        raise TokenizerError("A WordPiece tokenizer without an unknown token.")
    if len({*spelled}) != len(spelled):
        raise TokenizerError("The tokenizer has the same token twice.")
    lowercase = _flag(metadata, "normalizer.lowercase", True)
    return wordpiece(
        spelled,
        unknown=tokens[roles["unk"]],
        lowercase=lowercase,
        strip_accents=_flag(metadata, "normalizer.strip_accents", lowercase),
    )


def _bracketed(tokens: Sequence[str], types: Sequence[int]) -> list[int]:
    """Control tokens of WordPiece; some files do not type them."""
    return [
        index
        for index, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind in (CONTROL, UNKNOWN) or (token.startswith("[") and token.endswith("]") and len(token) > 2)
    ]


def from_sentencepiece(model: SentencePiece) -> Document:
    """The document of a sentencepiece model, whose parts are what GGUF files of these kinds hold."""
    metadata: dict[str, Any] = {
        _KEY + "tokens": model.tokens,
        _KEY + "scores": model.scores,
        _KEY + "token_type": model.types,
        _KEY + "add_space_prefix": model.space_prefix,
        _KEY + "remove_extra_whitespaces": model.merge_spaces,
        _KEY + "precompiled_charsmap": list(model.characters),
        _KEY + "model": "llama" if model.kind == BPE else "t5",
    }
    for role, name in {"bos": "<s>", "eos": "</s>", "unk": "<unk>", "padding": "<pad>"}.items():
        key = "unknown" if role == "unk" else role
        for spelled in (name, f"<{role}>"):
            if spelled in model.tokens:
                metadata[f"{_KEY}{key}_token_id"] = model.tokens.index(spelled)
    return from_gguf(metadata, "tokenizer.model").document
