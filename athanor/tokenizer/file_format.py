"""Reading and writing `tokenizer.json`, the file that transformers, vLLM and llama.cpp's converter read too.

Only one kind is written and read: byte-level BPE with a list of merges, cut by the `qwen2` pattern, no normaliser,
control tokens at the end of the vocabulary. A file of another kind is refused with the reason, for reading it half
would give wrong ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from athanor.base.errors import AthanorError, TokenizerError
from athanor.base.files import read_json
from athanor.tokenizer.pretokenization import PATTERN


def _byte_letters() -> list[str]:
    """GPT-2's printable letter for every byte: itself where it prints, else the next unused letter from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    substitutes = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(substitutes)) for byte in range(256)]


_LETTERS = _byte_letters()
_BYTES = {letter: byte for byte, letter in enumerate(_LETTERS)}


def _spell(token: bytes) -> str:
    return "".join(_LETTERS[byte] for byte in token)


def unspell(text: str) -> bytes:
    return bytes(_BYTES[letter] for letter in text)


def byte_level(role: str) -> dict[str, Any]:
    return {"type": role, "add_prefix_space": False, "trim_offsets": False, "use_regex": False}


_PRE_TOKENIZER = {
    "type": "Sequence",
    "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Isolated", "invert": False},
        byte_level("ByteLevel"),
    ],
}


def to_document(
    tokens: Sequence[bytes], merges: Sequence[tuple[bytes, bytes]], control: Sequence[str]
) -> dict[str, Any]:
    """The content of `tokenizer.json`.

    tokens: the ordinary tokens in order of id, the 256 bytes first; merges: what makes each of the others, in order;
    control: the names that take the ids after them.
    """
    added = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": len(tokens) + i, "content": name, **added} for i, name in enumerate(control)],
        "normalizer": None,
        "pre_tokenizer": _PRE_TOKENIZER,
        "post_processor": None,
        "decoder": byte_level("ByteLevel"),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {_spell(token): index for index, token in enumerate(tokens)},
            "merges": [[_spell(left), _spell(right)] for left, right in merges],
        },
    }


def read_document(path: Path) -> tuple[list[bytes], list[tuple[bytes, bytes]], list[str]]:
    """What `to_document` was given.

    Raises TokenizerError when the file is missing, corrupt or of another kind.
    """
    try:
        document = read_json(path)
    except AthanorError as error:
        raise TokenizerError(error.message, error.hint) from None
    except OSError as error:
        raise TokenizerError(f"{path} cannot be read ({error.strerror}).") from None
    try:
        return _parse(document)
    except TokenizerError as error:
        raise TokenizerError(f"{path}: {error.message}", error.hint) from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise TokenizerError(
            f"{path} is not a complete tokenizer.json ({type(error).__name__}: {error}).", "Restore or make it again."
        ) from None


def _parse(document: dict[str, Any]) -> tuple[list[bytes], list[tuple[bytes, bytes]], list[str]]:
    model = document["model"]
    if model.get("type") != "BPE":
        raise _other_kind(f"the model is {model.get('type')!r}")
    if document.get("normalizer") is not None:
        raise _other_kind("it normalises text, so that decoding cannot give the text back")
    for key in ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise _other_kind(f"model.{key} is {model[key]!r}")
    for key in ("fuse_unk", "byte_fallback", "ignore_merges"):
        if model.get(key):
            raise _other_kind(f"model.{key} is set")
    if document["pre_tokenizer"] != _PRE_TOKENIZER:
        raise _other_kind("its pre-tokeniser is not the `qwen2` pattern followed by bytes")
    if document.get("post_processor") is not None:
        raise _other_kind("it adds tokens around a text (post_processor)")
    tokens = _ordinary_tokens(model["vocab"])
    merges = [(unspell(left), unspell(right)) for left, right in model["merges"]]
    return tokens, merges, _control_names(document["added_tokens"], len(tokens))


def _other_kind(what: str) -> TokenizerError:
    return TokenizerError(
        f"This is another kind of tokenizer: {what}.",
        "Athanor reads byte-level BPE as `athanor tokenizer train` writes it.",
    )


def _ordinary_tokens(vocabulary: dict[str, int]) -> list[bytes]:
    by_id = sorted(vocabulary.items(), key=lambda item: item[1])
    if [index for _, index in by_id] != list(range(len(by_id))):
        raise TokenizerError("The vocabulary's ids are not 0, 1, 2 … without gaps.")
    return [unspell(spelling) for spelling, _ in by_id]


def _control_names(added: list[dict[str, Any]], first_id: int) -> list[str]:
    if [entry["id"] for entry in added] != list(range(first_id, first_id + len(added))):
        raise _other_kind("its control tokens do not follow the merges at the end of the vocabulary")
    for entry in added:
        if not entry["special"] or any(entry[key] for key in ("single_word", "lstrip", "rstrip", "normalized")):
            raise _other_kind(f"added token {entry['content']!r} is ordinary text or swallows its neighbours")
    return [entry["content"] for entry in added]
