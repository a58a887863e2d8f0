"""`athanor bench`: runs the scripts of `benchmarks/`, each in a process of its own, and shows what they measured.

A script says `ISSUE = "A"` and defines `rows()`, which yields dicts with metric, value, unit, target, peer, ratio and
met (a missing one is null).
"""

from __future__ import annotations

import ast
import difflib
import json as json_library
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from athanor.base.errors import AthanorError
from athanor.cli.output import print_json, print_table

FOLDER = Path("benchmarks")
COLUMNS = ("metric", "value", "unit", "target", "peer", "ratio", "met")


def bench(
    name: Annotated[str | None, typer.Argument(help="One benchmark; by default all.")] = None,
    issue: Annotated[str | None, typer.Option(help="Only the benchmarks of this issue, by its letter.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object a row instead.")] = False,
) -> None:
    """Measure, and compare with targets and peers."""
    failed = []
    for path in select(name, issue):
        print(f"{path.stem} …", file=sys.stderr)
        rows, process = [], _start(path)
        for row in _rows(process):
            rows.append(row)
            if json:
                print_json({"bench": path.stem, **row})
        if process.wait():
            failed.append(path.stem)
        if not json and rows:
            print(path.stem)
            print_table(COLUMNS, ([_cell(row[column]) for column in COLUMNS] for row in rows), COLUMNS[1:-1])
    if failed:
        print(f"Failed (see above): {', '.join(failed)}.", file=sys.stderr)
        raise typer.Exit(1)


def select(name: str | None, issue: str | None, folder: Path = FOLDER) -> list[Path]:
    """The scripts that are meant. Raises AthanorError when there are none."""
    scripts = {path.stem: path for path in sorted(folder.glob("[!_]*.py"))}
    scripts = {stem: path for stem, path in scripts.items() if _issue(path)}
    if not scripts:
        raise AthanorError(
            f"There is no folder {folder}/ with benchmarks here.",
            "They belong to the source checkout, not to the installed package: run this in a clone of the repository.",
        )
    if name is not None and name not in scripts:
        near = difflib.get_close_matches(name, scripts, n=1)
        meant = f"Did you mean {near[0]}? " if near else ""
        raise AthanorError(f"There is no benchmark {name!r}.", f"{meant}Known: {', '.join(scripts)}.")
    letter = issue and issue.upper()
    chosen = [path for stem, path in scripts.items() if name in (None, stem) and letter in (None, _issue(path))]
    if not chosen:
        known = ", ".join(sorted({_issue(path) for path in scripts.values()}))
        raise AthanorError(f"No benchmark belongs to issue {issue!r}.", f"Issues with benchmarks: {known}.")
    return chosen


def _issue(path: Path) -> str:
    """The letter after `ISSUE =`, read without running the script; empty when it is no benchmark."""
    try:
        statements = ast.parse(path.read_bytes()).body
    except (SyntaxError, ValueError):
        return "?"  # running it will show what is wrong
    for statement in statements:
        if isinstance(statement, ast.Assign) and [ast.unparse(target) for target in statement.targets] == ["ISSUE"]:
            return str(ast.literal_eval(statement.value)) if isinstance(statement.value, ast.Constant) else "?"
    return ""


def _start(path: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "athanor.cli.benchmark_process", str(path)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, encoding="utf-8")


def _rows(process: subprocess.Popen[str]) -> Iterator[dict[str, Any]]:
    assert process.stdout is not None
    try:
        for line in process.stdout:
            row = json_library.loads(line)
            yield {column: row.get(column) for column in COLUMNS}
    except BaseException:
        process.terminate()
        raise


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "NO"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
