"""`athanor embed`: vectors of texts, and how alike the texts are."""

from __future__ import annotations

import json as json_
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from athanor.base.errors import DataError
from athanor.base.files import atomic_path
from athanor.cli.output import AsJson, print_json, print_table
from athanor.cli.texts import TextFile, TextsToRead, given_texts, short

if TYPE_CHECKING:
    import numpy as np

_MOST_COMPARED = 1000  # texts; their pairs are a million numbers
_MOST_SHOWN = 20  # pairs on the terminal


def embed(
    model: Annotated[str, typer.Argument(help="An encoder: all-minilm-l6-v2, a model folder, or hf://org/name.")],
    texts: TextsToRead = None,
    input: TextFile = None,
    output: Annotated[
        Path | None, typer.Option(help="Write the vectors here: .npy, or .jsonl with their texts.")
    ] = None,
    json: AsJson = False,
) -> None:
    """Turn texts into vectors; without --output, say how alike several texts are."""
    given = given_texts(texts or [], input, "embed")
    if output is not None and output.suffix not in (".npy", ".jsonl"):
        raise DataError(f"{output} has an unknown kind.", "Name it .npy or .jsonl.")
    if output is None and len(given) > _MOST_COMPARED:
        raise DataError(f"{len(given)} texts are too many to compare on the terminal.", "Write them with --output.")

    from athanor.engine.locate import find_model

    folder = find_model(model)

    from athanor.engine.embedder import load_embedder

    vectors = load_embedder(folder).embed(given)
    if output is not None:
        _write(output, given, vectors)
        summary = {"output": str(output), "texts": len(given), "dimension": vectors.shape[1]}
        print_json(summary) if json else print(f"{output}: {len(given)} vectors of {vectors.shape[1]} numbers.")
    elif json:
        print_json({"embeddings": vectors.tolist(), "similarities": (vectors @ vectors.T).tolist()})
    elif len(given) == 1:
        print_json([round(value, 6) for value in vectors[0].tolist()])
    else:
        _print_pairs(given, vectors)


def _write(output: Path, texts: list[str], vectors: np.ndarray[Any, Any]) -> None:
    import numpy as np

    with atomic_path(output) as temporary:
        if output.suffix == ".npy":
            with open(temporary, "wb") as binary:
                np.save(binary, vectors, allow_pickle=False)
            return
        with open(temporary, "w", encoding="utf-8") as lines:
            for text, vector in zip(texts, vectors.tolist(), strict=True):
                lines.write(json_.dumps({"text": text, "embedding": vector}, ensure_ascii=False) + "\n")


def _print_pairs(texts: list[str], vectors: np.ndarray[Any, Any]) -> None:
    """The likest first."""
    import numpy as np

    from athanor.engine.terminal_chat import printable

    first, second = np.triu_indices(len(texts), 1)
    alike = (vectors @ vectors.T)[first, second]
    order = np.argsort(-alike, kind="stable")[:_MOST_SHOWN]
    rows = [(f"{alike[i]:.4f}", short(printable(texts[first[i]])), short(printable(texts[second[i]]))) for i in order]
    print_table(("cosine", "text", "text"), rows, right=("cosine",))
    if len(alike) > len(order):
        print(f"The {len(order)} likest of {len(alike)} pairs; --json prints all, --output writes the vectors.")
