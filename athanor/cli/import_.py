"""`athanor import`: a model from elsewhere as a folder here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from athanor.cli.export import Force, write
from athanor.cli.output import AsJson


def import_(
    source: Annotated[str, typer.Argument(help="Model folder, .gguf file, packaged model or hf://org/name.")],
    destination: Annotated[Path, typer.Argument(help="The folder to make.")],
    format: Annotated[
        str | None,
        typer.Option(metavar="FORMAT", help="F32, F16, BF16. Default: as it is (F32 of a GGUF file)."),
    ] = None,
    force: Force = False,
    json: AsJson = False,
) -> None:
    """Bring a model from elsewhere into a folder that can be trained, chatted with and exported."""
    write(source, destination, "hf", format, force, json)
