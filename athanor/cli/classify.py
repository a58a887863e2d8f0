"""`athanor classify`: of which class texts are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from athanor.cli.output import AsJson, print_json, print_table
from athanor.cli.texts import TextFile, TextsToRead, given_texts, short


def classify(
    model: Annotated[str, typer.Argument(help="A classifier: runs/NAME/classify, a model folder, or hf://org/name.")],
    texts: TextsToRead = None,
    input: TextFile = None,
    json: AsJson = False,
) -> None:
    """Say of which class texts are, and how likely."""
    given = given_texts(texts or [], input, "classify")

    from athanor.engine.classifier import load_classifier
    from athanor.engine.terminal_chat import printable

    classifier = load_classifier(model)
    found = classifier.probabilities(given)
    likeliest = found.argmax(-1)
    if json:
        print_json({"texts": [_answer(classifier.labels, *each) for each in zip(given, found.tolist(), strict=True)]})
        return
    named = [(classifier.labels[number], f"{found[row, number]:.2f}") for row, number in enumerate(likeliest)]
    lines = [(printable(label), p, short(printable(text))) for (label, p), text in zip(named, given, strict=True)]
    print_table(("class", "probability", "text"), lines, right=("probability",))


def _answer(labels: Sequence[str], text: str, probabilities: list[float]) -> dict[str, Any]:
    by_label = dict(zip(labels, probabilities, strict=True))
    return {"text": text, "label": max(by_label, key=by_label.__getitem__), "probabilities": by_label}
