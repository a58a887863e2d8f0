"""Texts on the command line, or in a file: what verbs that read texts take."""

from __future__ import annotations

import json as json_
from pathlib import Path
from typing import Annotated

import typer

from athanor.base.errors import DataError

TextsToRead = Annotated[list[str] | None, typer.Argument(help="Texts to read.", metavar="TEXT...")]
TextFile = Annotated[
    Path | None,
    typer.Option(help='File of texts: one a line (empty ones are skipped), or .jsonl with strings or {"text": ...}.'),
]


def given_texts(given: list[str], file: Path | None, verb: str) -> list[str]:
    """Those on the command line, then those of the file. Raises DataError when there are none, or for a bad line."""
    try:
        lines = file.read_text(encoding="utf-8").split("\n") if file else []
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read ({error}).", "Give a file of UTF-8 text.") from None
    filled = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    if file and file.suffix == ".jsonl":
        found = [*given, *(_text_of(line, f"Line {number} of {file}") for number, line in filled)]
    else:
        found = [*given, *(line.strip() for _, line in filled)]
    if not found:
        raise DataError(f"There is no text to {verb}.", "Give texts, or a file of them with --input.")
    return found


def _text_of(line: str, place: str) -> str:
    try:
        value = json_.loads(line)
    except ValueError as error:
        raise DataError(f"{place} is not JSON ({error}).") from None
    text = value.get("text") if isinstance(value, dict) else value
    if not isinstance(text, str):
        raise DataError(f"{place} holds no text.", 'Each line is a string or {"text": "..."}.')
    return text


def short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 60 else f"{line[:59]}…"
