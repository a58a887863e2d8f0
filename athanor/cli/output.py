"""What verbs print: one JSON object on standard output, sentences on standard error, tables for people."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any

import typer

from athanor.base.errors import AthanorError

if TYPE_CHECKING:
    from rich.console import Console

AsJson = Annotated[bool, typer.Option("--json", help="Print exactly one JSON object instead.")]


def print_json(value: Any) -> None:
    """One line. Numbers that JSON does not know are an error."""
    print(json.dumps(value, ensure_ascii=False, allow_nan=False), flush=True)


def print_error(error: AthanorError) -> None:
    """To standard error; when `--json` was asked for, as an object on standard output too."""
    if "--json" in sys.argv:
        with suppress(OSError):  # a full disk, perhaps the very reason
            print_json({"error": {"message": error.message, "hint": error.hint}})
    with suppress(OSError):
        print(f"error: {error.message}", file=sys.stderr)
        if error.hint:
            print(error.hint, file=sys.stderr)


def console() -> Console:
    """For tables and colours; plain text when standard output is no terminal."""
    from rich.console import Console

    return Console(highlight=False)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], right: Sequence[str] = ()) -> None:
    """right: columns of numbers."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    console().print(table)
