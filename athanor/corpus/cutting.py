"""Long texts cut into documents of about 5 kB at chapters and paragraphs.

That gives shuffling and held-out splits by document a meaning. A chapter is divided evenly, so no document is a scrap.
Only a paragraph longer than a document is cut inside, at the end of a line or sentence if there is one. Nothing is lost
but white space at the cuts.
"""

from __future__ import annotations

import re

_TARGET = 5_000  # bytes of UTF-8
_LONGEST = 8_000
_SHORTEST_SECTION = 500

_HEADING = re.compile(
    r"""\s*(?:
        \#{1,3}\s\S.*                                                         # Markdown
      | (?:chapter|book|part|section|prologue|epilogue|introduction|preface)\b.{0,60}
      | [IVXLC]{1,7}\.?                                                       # Roman numeral
      | 第[〇零一二三四五六七八九十百千两\d]{1,6}[回章节卷部篇].{0,40}
      )\s*""",
    re.VERBOSE | re.IGNORECASE,
)
_CAPITALS = re.compile(r"\s*[A-Z][^a-z\n]{3,69}[^a-z\n,]\s*")
_PARAGRAPH_END = re.compile(r"(?<=\n\n)(?!\n)")
_LINE_END = re.compile(r"(?<=\n)")
_SENTENCE_END = re.compile(r"(?<=[。！？])|(?<=[.!?] )")


def cut(text: str) -> list[str]:
    """Documents of the text, in order. A text that is short enough stays whole; blank text gives none."""
    text = re.sub(r"[ \t\u3000]+(?=\n)", "", text.replace("\r\n", "\n").replace("\r", "\n"))
    if _size(text) <= _LONGEST:
        return [text.strip()] if text.strip() else []
    documents: list[str] = []
    for section in _sections(_units(text)):
        documents.extend(_divide(section))
    return documents


def unwrap(text: str) -> str:
    """Joins the lines of hard-wrapped paragraphs; verse and lists (short lines) keep theirs."""
    paragraphs = re.split(r"\n{2,}", text.replace("\r\n", "\n"))
    return "\n\n".join(_unwrap_paragraph(paragraph) for paragraph in paragraphs)


def _unwrap_paragraph(paragraph: str) -> str:
    lines = paragraph.strip("\n").split("\n")
    body = lines[:-1]
    if not body or sum(len(line) for line in body) < 50 * len(body):
        return "\n".join(lines)
    joined = " ".join(line.strip() for line in lines)
    return joined.replace("-- ", "--")


def _size(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "replace"))


def _units(text: str) -> list[str]:
    """Pieces that are not cut further, with their trailing white space; joined they are the text."""
    units = [unit for unit in _PARAGRAPH_END.split(text) if unit]
    for boundary in (_LINE_END, _SENTENCE_END):
        units = [part for unit in units for part in (boundary.split(unit) if _size(unit) > _TARGET else [unit]) if part]
    step = _TARGET // 4  # characters: at most 4 bytes each
    return [
        unit[i : i + step] for unit in units for i in range(0, len(unit), step if _size(unit) > _LONGEST else len(unit))
    ]


def _is_heading(unit: str) -> bool:
    return len(unit) < 100 and bool(_HEADING.fullmatch(unit) or _CAPITALS.fullmatch(unit))


def _sections(units: list[str]) -> list[list[str]]:
    """Runs of units that begin at a heading; a run too small to stand alone takes the next one in."""
    sections: list[list[str]] = [[]]
    size = 0
    for unit in units:
        if size >= _SHORTEST_SECTION and _is_heading(unit):
            sections.append([])
            size = 0
        sections[-1].append(unit)
        size += _size(unit)
    return sections


def _divide(units: list[str]) -> list[str]:
    sizes = [_size(unit) for unit in units]
    pieces = max(1, round(sum(sizes) / _TARGET))
    share = sum(sizes) / pieces
    documents: list[str] = []
    current, done = "", 0
    for unit, size in zip(units, sizes, strict=True):
        if current.strip() and done + size / 2 > share * (len(documents) + 1):
            documents.append(current.strip())
            current = ""
        current += unit
        done += size
    return [document for document in (*documents, current.strip()) if document]
