"""Readers for a user's own files: text and Markdown, JSON, JSON lines (also gzipped) and Parquet.

Whatever cannot be read is skipped, counted and named in the `ReadReport`; no file can stop a build. Files are streamed,
so their size does not matter; only a `.json` file is held in memory whole. Languages are told apart by script alone:
enough for Chinese against the rest, and English is claimed only when its commonest words occur.
"""

from __future__ import annotations

import codecs
import gzip
import json
import os
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from athanor.base.errors import DataError
from athanor.corpus.cutting import cut
from athanor.corpus.document import Document, valid_unicode

SUFFIXES = (".txt", ".md", ".jsonl", ".jsonl.gz", ".json", ".parquet")
OWN = "your own"

_BLOCK = 4 << 20
_LONGEST_LINE = 64 << 20
_LARGEST_JSON = 256 << 20
_NAMED = 1_000  # skipped places that are named one by one; all are counted
_TEXT_FIELDS = ("text", "content", "body")
_Text = tuple[str, str, dict[str, str]]
"""What follows the file's name in the id, the text, its meta."""


@dataclass
class ReadReport:
    """What could not be read: counts by reason, and the first thousand places with their reason."""

    skipped: Counter[str] = field(default_factory=Counter)
    places: list[tuple[str, str]] = field(default_factory=list)

    def skip(self, place: str, reason: str) -> None:
        self.skipped[reason] += 1
        if len(self.places) < _NAMED:
            self.places.append((valid_unicode(place), reason))


def suffix_of(path: Path) -> str:
    """The entry of SUFFIXES that the file name ends with, or an empty string."""
    name = path.name.lower()
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), "")


def language_of(text: str) -> str:
    """ "zh", "ja", "ko", "en" or "und", from the scripts of the first 4,000 characters."""
    sample = text[:4000]
    letters = sum(map(str.isalpha, sample))
    if not letters:
        return "und"
    if len(re.findall("[\u3040-\u30ff]", sample)) > 0.1 * letters:
        return "ja"
    if len(re.findall("[\uac00-\ud7af]", sample)) > 0.3 * letters:
        return "ko"
    if len(re.findall("[\u3400-\u4dbf\u4e00-\u9fff]", sample)) > 0.3 * letters:
        return "zh"
    words = set(re.findall("[a-z]+", sample.lower()))
    return (
        "en" if len(words & {"the", "be", "to", "of", "and", "that", "have", "with", "is", "a", "in"}) >= 2 else "und"
    )


def read_file(path: Path, source: str, name: str, report: ReadReport) -> Iterator[Document]:
    """Documents of one file. name: the file's part of their ids."""
    name = valid_unicode(os.fsencode(name).decode("utf-8", "replace"))
    readers: dict[str, Callable[[Path, ReadReport], Iterator[_Text]]] = {
        ".txt": _read_text,
        ".md": _read_text,
        ".jsonl": _read_lines,
        ".jsonl.gz": _read_lines,
        ".json": _read_json,
        ".parquet": _read_parquet,
    }
    try:
        if path.stat().st_size == 0:
            report.skip(str(path), "empty file")
            return
        found = False
        for part, text, meta in readers[suffix_of(path)](path, report):
            if text.strip():
                found = True
                text = valid_unicode(text)
                yield Document(text, valid_unicode(f"{source}/{name}{part}"), source, OWN, language_of(text), meta)
            else:
                report.skip(f"{path}{part}", "empty text")
        if not found:
            report.skip(str(path), "file without text")
    except UnicodeError:
        report.skip(str(path), "binary file or unknown encoding")
    except OSError as error:
        report.skip(str(path), f"unreadable file ({error.strerror or type(error).__name__})")


# -- plain text -------------------------------------------------------------------------------------------------------


def _read_text(path: Path, report: ReadReport) -> Iterator[_Text]:
    encoding = detect_encoding(path)
    if encoding is None:
        report.skip(str(path), "binary file or unknown encoding")
        return
    number = 0
    for block in _text_blocks(path, encoding):
        for text in cut(block):
            yield f"#{number:04d}", text, {}
            number += 1


def _text_blocks(path: Path, encoding: str) -> Iterator[str]:
    """Text in blocks of about 4 MB that end at a paragraph, or at least a line, if there is one."""
    with open(path, encoding=encoding, newline="") as file:
        rest = ""
        while new := file.read(_BLOCK):
            rest += new
            if len(rest) >= _BLOCK:
                end = max(rest.rfind("\n\n"), rest.rfind("\r\n\r\n"))
                end = end if end > 0 else rest.rfind("\n")
                end = end if end > 0 else len(rest)
                yield rest[:end]
                rest = rest[end:]
        yield rest


def detect_encoding(path: Path) -> str | None:
    """The first of utf-8(-sig), utf-16 with a mark, gb18030, cp1252 that decodes the whole file into plausible text.

    gb18030 accepts almost anything, so most of what is not ASCII must be common Chinese; cp1252 (the Windows form of
    latin-1) must look like mostly unaccented prose. Raises OSError.
    """
    with open(path, "rb") as file:
        head = file.read(1 << 16)
        if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            return "utf-16" if _decodes(file, "utf-16") else None
        if _is_binary(head):
            return None
        for encoding, plausible in (("utf-8-sig", _any), ("gb18030", _is_chinese), ("cp1252", _is_western)):
            if plausible(head.decode(encoding, "ignore")) and _decodes(file, encoding):
                return encoding
    return None


def _is_binary(head: bytes) -> bool:
    controls = sum(head.count(bytes([code])) for code in (*range(1, 9), *range(14, 27), 127))
    return b"\0" in head or controls > 0.02 * len(head)


def _decodes(file: BinaryIO, encoding: str) -> bool:
    file.seek(0)
    decoder = codecs.getincrementaldecoder(encoding)()
    try:
        while block := file.read(_BLOCK):
            decoder.decode(block)
        decoder.decode(b"", final=True)
    except UnicodeError:
        return False
    return True


def _any(_text: str) -> bool:
    return True


def _is_chinese(text: str) -> bool:
    foreign = [character for character in text if character > "\x7f"]
    common = sum(len(character.encode("gb2312", "ignore")) > 0 for character in foreign)
    return common >= 0.7 * len(foreign)


def _is_western(text: str) -> bool:
    plain = sum(character.isascii() and (character.isalpha() or character.isspace()) for character in text)
    return plain >= 0.6 * len(text)


# -- structured files -------------------------------------------------------------------------------------------------


def _text_and_id(row: Any) -> tuple[str | None, str | None]:
    """The text (a string, or the field `text`, else `content` or `body`) and the id of a JSON value."""
    if isinstance(row, str):
        return row, None
    if not isinstance(row, dict):
        return None, None
    text = next((row[key] for key in _TEXT_FIELDS if isinstance(row.get(key), str)), None)
    identity = row.get("id")
    return text, str(identity) if isinstance(identity, (str, int)) else None


def _rows(path: Path, rows: Iterator[tuple[int, Any]], report: ReadReport) -> Iterator[_Text]:
    for number, row in rows:
        text, identity = _text_and_id(row)
        if text is None:
            report.skip(f"{path}:{number}", f"no text in any of the fields {', '.join(_TEXT_FIELDS)}")
        else:
            label = row.get("label") if isinstance(row, dict) else None
            meta = {"label": valid_unicode(str(label))} if isinstance(label, (str, int)) else {}
            yield f"#{number}" if identity is None else f"#{number}:{identity}", text, meta


def _read_lines(path: Path, report: ReadReport) -> Iterator[_Text]:
    yield from _rows(path, _json_lines(path, report), report)


def _json_lines(path: Path, report: ReadReport) -> Iterator[tuple[int, Any]]:
    number = 0
    try:
        with gzip.open(path, "rb") if path.name.lower().endswith(".gz") else open(path, "rb") as file:
            while line := file.readline(_LONGEST_LINE):
                number += 1
                if len(line) == _LONGEST_LINE and not line.endswith(b"\n"):
                    report.skip(f"{path}:{number}", "line longer than 64 MB")
                    while (more := file.readline(_LONGEST_LINE)) and not more.endswith(b"\n"):
                        pass
                    continue
                try:
                    if line.strip():
                        yield number, json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
                except (ValueError, RecursionError):
                    report.skip(f"{path}:{number}", "line is not JSON")
    except (EOFError, zlib.error, gzip.BadGzipFile):
        report.skip(f"{path}:{number + 1}", "damaged gzip data")


def _read_json(path: Path, report: ReadReport) -> Iterator[_Text]:
    """A list of texts or objects, or one object; an object of objects gives its values."""
    if path.stat().st_size > _LARGEST_JSON:
        report.skip(str(path), "JSON file larger than 256 MB (make it .jsonl)")
        return
    try:
        value = json.loads(path.read_bytes().decode("utf-8-sig"))
    except (ValueError, RecursionError):
        report.skip(str(path), "file is not JSON")
        return
    if isinstance(value, dict) and _text_and_id(value)[0] is None and any(isinstance(v, dict) for v in value.values()):
        value = list(value.values())
    yield from _rows(path, iter(enumerate(value if isinstance(value, list) else [value], 1)), report)


def _read_parquet(path: Path, report: ReadReport) -> Iterator[_Text]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise DataError(
            f"{path} needs pyarrow to be read.", 'Install it with: pip install "athanor-lm[corpus]"'
        ) from None
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            types = {name: file.schema_arrow.field(name).type for name in dict.fromkeys(file.schema_arrow.names)}
            strings = {
                name
                for name, kind in types.items()
                if pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)
            }
            column = next((name for name in _TEXT_FIELDS if name in strings), None)
            if column is None:
                report.skip(str(path), f"no text in any of the columns {', '.join(_TEXT_FIELDS)}")
                return
            columns = [column, *(name for name in ("id", "label") if name in types)]
            number = 0
            for batch in file.iter_batches(batch_size=256, columns=columns):
                rows = batch.to_pylist()
                yield from _rows(path, iter(enumerate(rows, number)), report)
                number += len(rows)
    except (pyarrow.ArrowException, KeyError, ValueError) as error:
        report.skip(str(path), f"damaged Parquet file ({type(error).__name__})")
