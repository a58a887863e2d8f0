"""What answers may look like, as options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from athanor.base.errors import DataError

AnyJson = Annotated[bool, typer.Option("--any-json", help="Answer with a JSON object or array.")]
Schema = Annotated[
    Path | None, typer.Option("--json-schema", help="Answer with JSON as the schema in this file has it.")
]
Regex = Annotated[str | None, typer.Option(help="Answer with what this regular expression matches.")]
Choices = Annotated[
    list[str] | None, typer.Option("--choice", help="Answer with this text; several: with one of them.")
]
Grammar = Annotated[Path | None, typer.Option(help="Answer as the grammar in this file has it, in Lark's notation.")]


def chosen(
    any_json: bool, schema: Path | None, regex: str | None, choices: list[str] | None, grammar: Path | None
) -> dict[str, Any]:
    """Only what the user gave, as keywords of `LanguageModel`."""
    given = {
        "any_json": any_json or None,
        "json_schema": None if schema is None else _text(schema),
        "regex": regex,
        "choices": choices or None,
        "grammar": None if grammar is None else _text(grammar),
    }
    return {name: value for name, value in given.items() if value is not None}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error}).", "Give a file of text in UTF-8.") from None
