"""The unit of the corpus: a text with its identity, origin and licence, and its form as one line of JSON."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

from athanor.base.errors import DataError

_SURROGATES = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Document:
    """id: unique within a corpus. language: "en", "zh", another code, or "und". meta: what JSON the reader knows."""

    text: str
    id: str
    source: str
    licence: str
    language: str
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def n_bytes(self) -> int:
        """UTF-8 length of the text."""
        return len(self.text) if self.text.isascii() else len(self.text.encode("utf-8"))


def valid_unicode(text: str) -> str:
    """`text` with lone surrogates (JSON and file names may have them) replaced by U+FFFD, so that UTF-8 can hold it."""
    return text if text.isascii() else _SURROGATES.sub("\ufffd", text)


def to_line(document: Document, **more: Any) -> bytes:
    """One line of JSON in a fixed key order, with the keys of `more` appended."""
    value: dict[str, Any] = {"id": document.id, "source": document.source, "licence": document.licence}
    value["language"] = document.language
    value["text"] = document.text
    if document.meta:
        value["meta"] = document.meta
    return json.dumps(value | more, ensure_ascii=False, separators=(",", ":")).encode("utf-8") + b"\n"


def from_line(line: bytes, place: str) -> Document:
    """place: named in the DataError raised when the line is not a document."""
    try:
        value = json.loads(line)
        fields = {name: value[name] for name in ("text", "id", "source", "licence", "language")}
        if not all(isinstance(content, str) for content in fields.values()):
            raise TypeError("a field is not text")
        return Document(**fields, meta=value.get("meta", {}))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{place} is damaged: a line is not a document ({error}).", "Build the corpus again.") from None
