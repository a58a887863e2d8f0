"""`athanor chat`: talk to a model in the terminal, or pipe questions through it."""

from __future__ import annotations

import contextlib
import sys
from typing import Annotated

import typer

from athanor.cli import sampling
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


def chat(
    model: Annotated[
        str | None,
        typer.Argument(
            help="Model folder, .gguf file, run, packaged model or hf://org/name; default: the latest run's."
        ),
    ] = None,
    system: Annotated[str | None, typer.Option(help="A system message.")] = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    repetition_penalty: RepetitionPenalty = None,
    max_tokens: MaxTokens = None,
    seed: Seed = None,
    format: Format = "auto",
    cache: Cache = "auto",
    speculate: Speculate = "lookup",
) -> None:
    """Talk to a model. /help lists what can be done; when standard input is no terminal, each line is answered."""
    from athanor.engine.locate import find_model, latest_model

    folder = find_model(model) if model else latest_model()

    from athanor.engine.language_model import load
    from athanor.engine.terminal_chat import TerminalChat, printable
    from athanor.models.build import count_parameters

    lm = load(folder, format=format, cache=cache, speculate=speculate)  # type: ignore[arg-type]
    lm.chat_prompt([{"role": "user", "content": "?"}])  # a model without a chat template is refused here
    settings = sampling.chosen(
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=repetition_penalty,
        max_tokens=max_tokens, seed=seed,
    )  # fmt: skip
    if sys.stdin.isatty() and sys.stdout.isatty():
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 - gives input() line editing and history
        size = f"{count_parameters(lm.model.config) / 1e6:.1f} M parameters"
        print(printable(f"{model or folder} · {size} · /help, Ctrl-D leaves"))
        TerminalChat(lm, settings, system, sys.stdout, sys.stdout).converse()
    else:
        sys.stdin.reconfigure(encoding="utf-8", errors="replace")  # type: ignore[union-attr]
        TerminalChat(lm, settings, system, sys.stdout, sys.stderr).answer_lines(sys.stdin)
