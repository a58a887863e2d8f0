"""The `athanor` command: finds the verb, runs it, and turns what goes wrong into a sentence and an exit code.

A verb's module is imported when it is asked for, and heavy libraries inside the verbs' functions, so that help appears
at once. Exit codes: 0 done, 1 a broken pipe or a benchmark that failed, 2 something the user can mend, 130 stopped by
Ctrl-C, 143 by a scheduler's SIGTERM.
Anything else is a bug and shows its traceback.
"""

from __future__ import annotations

import errno
import importlib
import keyword
import os
import signal
import sys
from collections.abc import Iterator, MutableMapping
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import athanor
from athanor.base.errors import AthanorError, Stopped
from athanor.base.files import FULL
from athanor.base.machine import prepare_process
from athanor.cli.output import print_error

VERBS = (
    "run", "chat", "generate", "embed", "classify", "models", "import", "export", "tokenizer", "corpus", "bench",
    "ablate", "history", "doctor",
)  # fmt: skip

_OUT_OF_MEMORY = ("allocate memory", "out of memory")  # as torch says it of the machine, and of a GPU
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


class _Verbs(MutableMapping[str, Any]):
    """Commands by name, made on demand: the function of its module's name, or the module's `app` of several."""

    def __init__(self) -> None:
        self._made: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._made:
            if name not in VERBS:
                raise KeyError(name)
            word = f"{name}_" if keyword.iskeyword(name) else name
            module = importlib.import_module(f"athanor.cli.{word}")
            app = getattr(module, "app", None)
            if app is None:
                app = typer.Typer(add_completion=False, rich_markup_mode=None)
                app.command(name)(getattr(module, word))
            self._made[name] = typer.main.get_command(app)
            self._made[name].name = name
        return self._made[name]

    def __setitem__(self, name: str, command: Any) -> None:
        self._made[name] = command

    def __delitem__(self, name: str) -> None:
        del self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(VERBS)

    def __len__(self) -> int:
        return len(VERBS)


class _Root(TyperGroup):
    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = _Verbs()

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            print("\nStopped. The same command continues.", file=sys.stderr)
            raise typer.Exit(128 + (stop.signal if isinstance(stop, Stopped) else signal.SIGINT)) from None


_app = typer.Typer(cls=_Root, add_completion=False, rich_markup_mode=None, no_args_is_help=True)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"athanor {athanor.__version__}")
        raise typer.Exit()


@_app.callback()
def _athanor(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """The whole life of a language model: `athanor run` makes one, `athanor chat` talks to it."""


def main() -> None:
    """Runs the command line of this process and exits."""
    code = _run()
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter would try once more
        code = 1
    sys.exit(code)


def _run() -> int:
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by whoever started this process
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115, for as long as it runs
    for stream in (sys.stdout, sys.stderr):  # an old console may lack a character; it must not end the program
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    prepare_process()
    try:
        typer.main.get_group(_app).main(prog_name="athanor")
    except SystemExit as exit_:
        return exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
    except AthanorError as error:
        print_error(error)
    except OSError as error:
        if error.errno in FULL:
            hint = "Free some space and run the same command again; it continues."
            print_error(AthanorError(f"The disk is full{_where(error)}.", hint))
        elif error.errno in _FORBIDDEN or error.filename:
            print_error(AthanorError(f"{error.strerror}{_where(error)}.", "Choose a place that can be used."))
        else:
            raise
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not any(said in str(error) for said in _OUT_OF_MEMORY):
            raise
        print_error(AthanorError("The memory does not suffice.", "Make the model, micro_rows, rows or length smaller."))
    except KeyboardInterrupt:
        return 130
    return 2


def _where(error: OSError) -> str:
    return f": {error.filename}" if error.filename else ""


if __name__ == "__main__":
    main()
