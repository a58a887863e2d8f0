"""What the tokens of a `tokenizer.json` stand for, and a vocabulary in which control tokens cannot be written."""

from __future__ import annotations

import re
import secrets
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from athanor.base.errors import TokenizerError
from athanor.tokenizer.documents import BLANK
from athanor.tokenizer.file_format import unspell

_BYTE = re.compile("<0x([0-9A-Fa-f]{2})>")
_TURN = re.compile(r"<\|.+\|>|<｜.+｜>|<(start|end)_of_turn>", re.DOTALL)


def components(component: Any) -> Iterator[Mapping[str, Any]]:
    """A normalizer, pre-tokenizer or decoder and all that it is made of."""
    if isinstance(component, Mapping):
        yield component
        for key in ("normalizers", "pretokenizers", "decoders"):
            for part in component.get(key) or ():
                yield from components(part)


def kind_of(document: Mapping[str, Any]) -> str:
    """How tokens are spelled: "bytes" (GPT-2's letters), "pieces" (`▁` for blanks) or "words" (`##` inside words).

    Raises TokenizerError for a kind that is not read.
    """
    model = document["model"]
    name = model.get("type")
    if name == "WordPiece":
        return "words"
    if name == "BPE" and not model.get("end_of_word_suffix") and not model.get("continuing_subword_prefix"):
        parts = [part for key in ("normalizer", "pre_tokenizer", "decoder") for part in components(document.get(key))]
        return "bytes" if any(part.get("type") == "ByteLevel" for part in parts) else "pieces"
    if name == "Unigram":
        return "pieces"
    raise TokenizerError(
        f"This kind of tokenizer is not read: {name}{' with marked words' if name == 'BPE' else ''}.",
        "Read are BPE over bytes or with byte fallback, Unigram and WordPiece.",
    )


def bytes_of_tokens(document: Mapping[str, Any], kind: str) -> dict[int, bytes]:
    """By id; added tokens verbatim."""
    model = document["model"]
    found = {index: _token_bytes(token, kind, model) for token, index in vocabulary(model).items()}
    return found | {int(token["id"]): str(token["content"]).encode() for token in document["added_tokens"]}


def vocabulary(model: Mapping[str, Any]) -> dict[str, int]:
    if model["type"] == "Unigram":
        return {str(token): index for index, (token, _) in enumerate(model["vocab"])}
    return {str(token): int(index) for token, index in model["vocab"].items()}


def _token_bytes(token: str, kind: str, model: Mapping[str, Any]) -> bytes:
    if kind == "bytes":
        try:
            return unspell(token)
        except KeyError:  # a token that no text is cut into
            return token.encode()
    if kind == "words":
        prefix = str(model.get("continuing_subword_prefix") or "##")
        return token[len(prefix) :].encode() if token.startswith(prefix) else f" {token}".encode()
    if model.get("byte_fallback") and (byte := byte_of(token)) is not None:
        return byte
    return token.replace(BLANK, " ").encode()


def byte_of(token: str) -> bytes | None:
    """The byte that `<0x0A>` stands for; None for other tokens."""
    found = _BYTE.fullmatch(token)
    return bytes([int(found[1], 16)]) if found else None


def control_tokens(document: Mapping[str, Any], stop_ids: Sequence[int]) -> dict[str, Mapping[str, Any]]:
    """The added tokens that nobody may write, by their spelling: special ones, those that end an answer, and those that
    mark turns, which some files leave ordinary (llama.cpp's converter knows them by their looks, too).
    """
    return {
        str(token["content"]): token
        for token in document["added_tokens"]
        if token["special"] or int(token["id"]) in stop_ids or _TURN.fullmatch(str(token["content"]))
    }


def without_control(document: Mapping[str, Any], control: Collection[str]) -> dict[str, Any]:
    """The document with every token of `control` under a name that cannot be guessed, so that no text holds it.

    All added tokens stand in the vocabulary, where they keep their ids; of merges, those with such a token go. Settings
    that would cut a text short, or fill it up, go as well.
    """
    model, added = dict(document["model"]), document["added_tokens"]
    hidden = {str(token["content"]): secrets.token_hex(16) for token in added if token["content"] in control}
    names = {str(token["content"]): int(token["id"]) for token in added}
    if model["type"] == "Unigram":
        pieces = [[hidden.get(token, token), score] for token, score in model["vocab"]]
        missing = {index: name for name, index in names.items() if index >= len(pieces)}
        for index in range(len(pieces), max(missing, default=-1) + 1):
            name = missing.get(index)
            pieces.append([secrets.token_hex(16) if name is None else hidden.get(name, name), 0.0])
        model["vocab"] = pieces
    else:
        model["vocab"] = {hidden.get(name, name): i for name, i in {**vocabulary(model), **names}.items()}
        if model.get("unk_token") is not None:
            model["unk_token"] = hidden.get(model["unk_token"], model["unk_token"])
    if model["type"] == "BPE" and hidden:
        merges = [merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model["merges"]]
        model["merges"] = [m for m in merges if not (m[0] in hidden or m[1] in hidden or m[0] + m[1] in hidden)]
    kept = [token for token in added if token["content"] not in control]
    whole = {"post_processor": None, "truncation": None, "padding": None}
    return {**document, "model": model, "added_tokens": kept, **whole}
