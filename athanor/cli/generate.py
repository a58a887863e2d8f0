"""`athanor generate`: one completion of a text, or one reply to a message."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from athanor.base.errors import DataError
from athanor.cli import sampling
from athanor.cli.output import AsJson, print_json
from athanor.cli.sampling import MaxTokens, MinP, RepetitionPenalty, Seed, Temperature, TopK, TopP


def generate(
    model: Annotated[str, typer.Argument(help="Model folder, .gguf file, run, packaged model or hf://org/name.")],
    prompt: Annotated[str, typer.Option(help="The text to continue; - reads it from standard input.")],
    chat: Annotated[bool, typer.Option("--chat", help="Answer the prompt as a message instead.")] = False,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    repetition_penalty: RepetitionPenalty = None,
    max_tokens: MaxTokens = None,
    seed: Seed = None,
    json: AsJson = False,
) -> None:
    """Continue a text, or answer one message."""
    text = standard_input() if prompt == "-" else prompt

    from athanor.engine.locate import find_model

    folder = find_model(model)

    from athanor.engine.language_model import load
    from athanor.engine.terminal_chat import printable

    settings = sampling.chosen(
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=repetition_penalty,
        max_tokens=max_tokens, seed=seed,
    )  # fmt: skip
    for piece in load(folder).stream([{"role": "user", "content": text}] if chat else text, **settings):
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


def standard_input() -> str:
    """All of it. Raises DataError when it is not UTF-8."""
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"Standard input is not UTF-8 (byte {error.start}).", "Convert it, say with iconv.") from None
