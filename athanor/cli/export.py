"""`athanor export`: a model as a Hugging Face folder or a GGUF file."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from athanor.base.errors import ModelError
from athanor.cli.output import AsJson, print_json

_FORMATS = (
    "F32, F16, BF16, for GGUF also Q8_0, Q4_0. Default: as it is (F32 of a GGUF file), for GGUF F16 (BF16 of BF16)."
)
Format = Annotated[str | None, typer.Option(metavar="FORMAT", help=_FORMATS)]
Force = Annotated[bool, typer.Option("--force", help="Replace what is there.")]


def export(
    model: Annotated[
        str,
        typer.Argument(help="Model folder, .gguf file, run, checkpoint of one, packaged model or hf://org/name."),
    ],
    destination: Annotated[Path, typer.Argument(help="Folder, or file ending in .gguf.")],
    to: Annotated[str | None, typer.Option(metavar="hf|gguf", help="Default: by the destination's name.")] = None,
    format: Format = None,
    force: Force = False,
    json: AsJson = False,
) -> None:
    """Write a model for other programs: a Hugging Face folder, or a GGUF file for llama.cpp."""
    to = to or ("gguf" if destination.suffix == ".gguf" else "hf")
    if to not in ("hf", "gguf"):
        raise ModelError(f"--to {to} is not known.", "Known: hf, gguf.")
    from athanor.training.checkpoints import is_checkpoint

    if not is_checkpoint(Path(model)):
        write(model, destination, to, format, force, json)
        return
    from athanor.pipeline.checkpoint_model import write_checkpoint_model

    with TemporaryDirectory() as place:
        folder = Path(place) / "model"
        write_checkpoint_model(Path(model), folder)
        write(str(folder), destination, to, format, force, json)


def write(source: str, destination: Path, to: str, form: str | None, force: bool, json: bool) -> None:
    """Converts, and says what was made."""
    from athanor.base.progress import quantity, say, size
    from athanor.engine.conversion import convert

    made = convert(source, destination, "gguf" if to == "gguf" else "hf", form, replace=force)
    if made.context is not None:
        say(f"llama.cpp follows no sliding windows in this family: the context is set to the window, {made.context}.")
    if json:
        print_json(
            {
                "where": str(made.place), "family": made.family, "parameters": made.parameters, "format": made.form,
                "bytes": made.bytes, "context": made.context, "portable": made.portable,
            }
        )  # fmt: skip
    else:
        parts = f"{made.family}, {quantity(made.parameters)} parameters, {made.form}, {size(made.bytes)}"
        print(f"{made.place}: {parts}")
