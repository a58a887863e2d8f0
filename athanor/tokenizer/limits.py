"""What a `tokenizer.json` from elsewhere may ask for.

The library that cuts texts does whatever the file says, and a few lines of it can say: make a million letters of each,
list a billion ids, ask for memory that ends the process.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from athanor.base.errors import TokenizerError
from athanor.tokenizer.spelling import components

_MOST_IDS = 1 << 22
_LONGEST_WORD = 256  # characters of a word that WordPiece looks up; BERT's has 100, and time grows with the cube
_MOST_GROWTH = 1 << 12  # bytes that a byte of text may become before it is cut; T5's takes at most 272


def check_limits(document: Mapping[str, Any]) -> None:
    """Raises TokenizerError for a document that would take time or memory beyond all proportion."""
    for token in document["added_tokens"]:
        if not 0 <= int(token["id"]) < _MOST_IDS or not token["content"]:
            raise _refused(f"the added token {str(token['content'])[:80]!r} has the id {token['id']}")
    longest = document["model"].get("max_input_chars_per_word") or 0
    if int(longest) > _LONGEST_WORD:
        raise _refused(f"words of {longest} characters are looked up")
    growth = 1.0
    for key in ("normalizer", "pre_tokenizer"):
        for part in components(document.get(key)):
            growth *= _growth(part)
            if growth > _MOST_GROWTH:
                raise _refused(f"its {key} may make a text more than {_MOST_GROWTH} times as long")


def _refused(what: str) -> TokenizerError:
    return TokenizerError(f"The tokenizer is broken or hostile: {what}.", "Take another one.")


def _growth(part: Mapping[str, Any]) -> float:
    """How many times as long a text may become; by the keys, for the library does not insist on the type."""
    if part.get("precompiled_charsmap"):
        return _growth_of_table(base64.b64decode(str(part["precompiled_charsmap"])))
    if "content" in part and isinstance(part.get("pattern"), Mapping):
        replaced, made = part["pattern"].get("String"), _size(part["content"])
        return max(1.0, made / _size(replaced)) if replaced else 1.0 + made
    for key in ("prepend", "replacement"):
        if key in part:
            return 1.0 + _size(part[key])
    return 2.0 if part.get("type") == "ByteLevel" else 1.0


def _growth_of_table(table: bytes) -> float:
    """sentencepiece's: the length of a trie, the trie, and the replacements, each ended by a zero."""
    length = int.from_bytes(table[:4], "little")
    if length > len(table) - 4:
        raise _refused("its table of replacements is cut short")
    return 1.0 + max(map(len, table[4 + length :].split(b"\0")))


def _size(text: Any) -> int:
    return len(str(text).encode("utf-8", "surrogatepass"))
