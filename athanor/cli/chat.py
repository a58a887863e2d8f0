"""`athanor chat`: talk to a model in the terminal, or pipe questions through it."""

from __future__ import annotations

import contextlib
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from athanor.cli.sampling import SEVERAL, Cache, Format, Speculate, with_sampling

if TYPE_CHECKING:
    from athanor.engine.language_model import LanguageModel


@with_sampling(*SEVERAL)
def chat(
    model: Annotated[
        str | None,
        typer.Argument(
            help="Model folder, .gguf file, run, packaged model or hf://org/name; default: the latest run's."
        ),
    ] = None,
    system: Annotated[str | None, typer.Option(help="A system message.")] = None,
    format: Format = "auto",
    cache: Cache = "auto",
    speculate: Speculate = "lookup",
    *,
    settings: dict[str, Any],
) -> None:
    """Talk to a model. /help lists what can be done; when standard input is no terminal, each line is answered."""
    from athanor.engine.locate import find_model, latest_model

    folder = find_model(model) if model else latest_model()

    from athanor.engine.terminal_chat import TerminalChat, printable

    if sys.stdin.isatty() and sys.stdout.isatty():
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 - gives input() line editing and history
        print(printable(f"{model or folder} · /help, Ctrl-D leaves"), flush=True)
        with ThreadPoolExecutor(1) as others:  # loads while the user types
            loading = others.submit(_ready, folder, format, cache, speculate, system, settings)
            TerminalChat(loading, settings, system, sys.stdout, sys.stdout).converse()
    else:
        sys.stdin.reconfigure(encoding="utf-8", errors="replace")  # type: ignore[union-attr]
        loaded: Future[LanguageModel] = Future()
        loaded.set_result(_ready(folder, format, cache, speculate, system, settings))
        TerminalChat(loaded, settings, system, sys.stdout, sys.stderr).answer_lines(sys.stdin)


def _ready(
    folder: Path, format: str, cache: str, speculate: str, system: str | None, settings: dict[str, Any]
) -> LanguageModel:
    """The model when it has answered once: a setting or a template that cannot be used is refused now, and the first
    answer waits for nothing.
    """
    from athanor.engine.language_model import load

    lm = load(folder, format=format, cache=cache, speculate=speculate)  # type: ignore[arg-type]
    before = [{"role": "system", "content": system}] if system else []
    lm.sampling(settings)
    lm.chat([*before, {"role": "user", "content": "?"}], **settings | {"max_tokens": 1, "min_tokens": 0})
    return lm
