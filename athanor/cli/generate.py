"""`athanor generate`: one completion of a text, one reply to a message, or those to a file of prompts."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from athanor.base.errors import DataError
from athanor.cli import constraints
from athanor.cli.constraints import AnyJson, Choices, Grammar, Regex, Schema
from athanor.cli.output import AsJson, print_json
from athanor.cli.sampling import TOLD_IN_JSON, Cache, Format, Speculate, with_sampling

if TYPE_CHECKING:
    from athanor.engine.language_model import LanguageModel, Reply


@with_sampling()
def generate(
    model: Annotated[str, typer.Argument(help="Model folder, .gguf file, run, packaged model or hf://org/name.")],
    text: Annotated[
        str | None, typer.Argument(metavar="PROMPT", help="The text to continue; - reads it from standard input.")
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="The same, as an option.")] = None,
    source: Annotated[
        Path | None,
        typer.Option(
            "--input",
            help='JSON lines to answer: texts, {"prompt": …} or {"messages": […]}, with settings of their own.',
        ),
    ] = None,
    target: Annotated[
        Path | None, typer.Option("--output", help="Where those answers go; a file cut short is continued.")
    ] = None,
    read: Annotated[
        str | None, typer.Option("--from", metavar="LANGUAGE", help="Of the text, where a translator knows several.")
    ] = None,
    write: Annotated[str | None, typer.Option("--to", metavar="LANGUAGE", help="Of the answer.")] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Answer the prompt as a message instead.")] = False,
    any_json: AnyJson = False,
    json_schema: Schema = None,
    regex: Regex = None,
    choice: Choices = None,
    grammar: Grammar = None,
    format: Format = "auto",
    cache: Cache = "auto",
    speculate: Speculate = "lookup",
    json: AsJson = False,
    *,
    settings: dict[str, Any],
) -> None:
    """Continue a text, translate or sum one up with a model that does, answer one message, or answer a file."""
    given = [value for value in (text, prompt, source) if value is not None]
    if len(given) != 1 or (source is None) != (target is None):
        raise DataError(
            "Nothing to answer, or too much.",
            "Give a prompt, as an argument or with --prompt, or --input with --output.",
        )
    asked = text if prompt is None else prompt
    if source is None and not json and (unseen := [name for name in TOLD_IN_JSON if name in settings]):
        option = unseen[0].replace("_", "-")
        raise DataError(f"--{option} has no place in plain text.", "Give --json too, or --input with --output.")
    asked = standard_input() if asked == "-" else asked

    from athanor.engine.locate import find_model, weights_fingerprint

    folder = find_model(model)

    from athanor.engine.language_model import load
    from athanor.engine.source_model import between

    settings |= constraints.chosen(any_json, json_schema, regex, choice, grammar)
    lm = between(load(folder, format=format, cache=cache, speculate=speculate), read, write)  # type: ignore[arg-type]
    if source is not None and target is not None:
        identity = [weights_fingerprint(folder), format, cache]
        _answer_file(lm, identity, source, target, settings, chat, json)
        return
    assert asked is not None
    question = [{"role": "user", "content": asked}] if chat else asked
    if json or settings.get("n", 1) != 1:
        _print_replies(lm.submit(question, lm.sampling(settings)).replies(), json)
        return
    for piece in lm.stream(question, **settings):
        print(_shown(piece.text), end="", flush=True)
    print()


def _print_replies(replies: Sequence[Reply], json: bool) -> None:
    """As one object, with a list of several; or as text, several with an empty line between."""
    if not json:
        print("\n\n".join(_shown(reply.text) for reply in replies))
        return
    from athanor.engine.answer_file import told

    told_of = [told(reply) | {"tokens": reply.tokens, "timings": reply.timings} for reply in replies]
    print_json(told_of[0] if len(replies) == 1 else {"answers": told_of})


def _shown(text: str) -> str:
    """A terminal acts on control characters, a file should get all that was said."""
    from athanor.engine.terminal_chat import printable

    return printable(text) if sys.stdout.isatty() else text


def _answer_file(
    lm: LanguageModel, identity: list[str], source: Path, target: Path, settings: dict[str, Any], chat: bool, json: bool
) -> None:
    from athanor.engine.answer_file import answer_file

    done = answer_file(lm, identity, source, target, settings, chat)
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
