"""`athanor tokenizer`: train one on files, or look at how one cuts a text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from athanor.cli.generate import standard_input
from athanor.cli.output import AsJson, console, print_json

app = typer.Typer(
    add_completion=False, rich_markup_mode=None, no_args_is_help=True, help="Train and inspect tokenizers."
)

_COLOURS = ("black on cyan", "black on yellow", "black on green", "black on magenta")


@app.command()
def train(
    files: Annotated[list[str], typer.Argument(help="Files or folders of text, or sources by name.")],
    out: Annotated[Path, typer.Option(help="Folder that receives tokenizer.json.")],
    vocab_size: Annotated[int, typer.Option(help="A multiple of 64, control tokens included.")] = 8192,
    json: AsJson = False,
) -> None:
    """Train a byte-level BPE tokenizer."""
    from athanor.corpus.file_readers import ReadReport
    from athanor.corpus.readers import read_sources
    from athanor.tokenizer import train_tokenizer

    report = ReadReport()
    tokenizer = train_tokenizer((document.text for document in read_sources(files, report)), vocab_size)
    tokenizer.save(out)
    result = {
        "folder": str(out),
        "vocab_size": tokenizer.vocab_size,
        "fingerprint": tokenizer.fingerprint,
        "skipped": dict(report.skipped),
    }
    if json:
        print_json(result)
        return
    print(f"{out}: {tokenizer.vocab_size} ids, fingerprint {tokenizer.fingerprint[:12]}")
    for reason, count in report.skipped.items():
        print(f"skipped {count}: {reason}")
    if tokenizer.vocab_size < vocab_size:
        print(f"The text is too small for {vocab_size} ids.")


@app.command()
def inspect(
    model: Annotated[str, typer.Argument(help="Folder with a tokenizer.json, or run name.")],
    text: Annotated[str, typer.Argument(help="The text; - reads it from standard input.")],
    json: AsJson = False,
) -> None:
    """Show the tokens of a text."""
    from athanor.engine.locate import find_model
    from athanor.tokenizer import Tokenizer
    from athanor.tokenizer.inspection import visualise

    folder = Path(model) if (Path(model) / "tokenizer.json").is_file() else find_model(model)
    segments = visualise(Tokenizer.load(folder), standard_input() if text == "-" else text)
    size = sum(len(segment.data) for segment in segments)
    if json:
        tokens = [
            {"id": s.token_id, "bytes": s.data.hex(), "text": s.shown, "starts_piece": s.starts_piece} for s in segments
        ]
        print_json({"tokens": tokens, "bytes": size})
        return

    from rich.text import Text

    shown = Text()
    for index, segment in enumerate(segments):
        shown.append(segment.shown, _COLOURS[index % len(_COLOURS)])
    screen = console()
    if screen.is_terminal:
        screen.print(shown, soft_wrap=True)
    else:
        print("|".join(segment.shown for segment in segments))
    print(" ".join(str(segment.token_id) for segment in segments))
    print(f"{len(segments)} tokens, {size} bytes")
