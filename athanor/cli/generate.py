"""`athanor generate`: one completion of a text, one reply to a message, or those to a file of prompts."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from athanor.base.errors import DataError
from athanor.cli import constraints, sampling
from athanor.cli.constraints import AnyJson, Choices, Grammar, Regex, Schema
from athanor.cli.output import AsJson, print_json
from athanor.cli.sampling import (
    Cache,
    Format,
    MaxTokens,
    MinP,
    RepetitionPenalty,
    Seed,
    Speculate,
    Temperature,
    TopK,
    TopP,
)

if TYPE_CHECKING:
    from athanor.engine.language_model import LanguageModel


def generate(
    model: Annotated[str, typer.Argument(help="Model folder, .gguf file, run, packaged model or hf://org/name.")],
    prompt: Annotated[str | None, typer.Option(help="The text to continue; - reads it from standard input.")] = None,
    source: Annotated[
        Path | None, typer.Option("--input", help='JSON lines to answer: texts, {"prompt": …} or {"messages": […]}.')
    ] = None,
    target: Annotated[
        Path | None, typer.Option("--output", help="Where those answers go; a file cut short is continued.")
    ] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Answer the prompt as a message instead.")] = False,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    repetition_penalty: RepetitionPenalty = None,
    max_tokens: MaxTokens = None,
    seed: Seed = None,
    any_json: AnyJson = False,
    json_schema: Schema = None,
    regex: Regex = None,
    choice: Choices = None,
    grammar: Grammar = None,
    format: Format = "auto",
    cache: Cache = "auto",
    speculate: Speculate = "lookup",
    json: AsJson = False,
) -> None:
    """Continue a text, answer one message, or answer a file of prompts."""
    if (prompt is None) == (source is None) or (source is None) != (target is None):
        raise DataError("Nothing to answer, or too much.", "Give --prompt, or --input with --output.")
    text = standard_input() if prompt == "-" else prompt

    from athanor.engine.locate import find_model

    folder = find_model(model)

    from athanor.engine.language_model import load
    from athanor.engine.terminal_chat import printable

    settings = sampling.chosen(
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=repetition_penalty,
        max_tokens=max_tokens, seed=seed,
    )  # fmt: skip
    settings |= constraints.chosen(any_json, json_schema, regex, choice, grammar)
    lm = load(folder, format=format, cache=cache, speculate=speculate)  # type: ignore[arg-type]
    if source is not None and target is not None:
        _answer_file(lm, str(folder), source, target, settings, chat, json)
        return
    assert text is not None
    for piece in lm.stream([{"role": "user", "content": text}] if chat else text, **settings):
        if not json:  # a terminal acts on control characters, a file should get all that was said
            print(printable(piece.text) if sys.stdout.isatty() else piece.text, end="", flush=True)
        elif reply := piece.reply:
            print_json(
                {
                    "text": reply.text,
                    "tokens": reply.tokens,
                    "finish_reason": reply.finish_reason,
                    "timings": reply.timings,
                }
            )
    if not json:
        print()


def _answer_file(
    lm: LanguageModel, name: str, source: Path, target: Path, settings: dict[str, Any], chat: bool, json: bool
) -> None:
    from athanor.engine.answer_file import answer_file

    done = answer_file(lm, name, source, target, settings, chat)
    if json:
        print_json(asdict(done))
        return
    refused = f", of which {done.refused} could not be read" if done.refused else ""
    print(f"{done.prompts} prompts are answered in {target}{refused} ({done.tokens} tokens).")


def standard_input() -> str:
    """All of it. Raises DataError when it is not UTF-8."""
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"Standard input is not UTF-8 (byte {error.start}).", "Convert it, say with iconv.") from None
