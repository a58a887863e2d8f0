"""Writes docs/performance.md from the rows that benchmarks have printed. Not a benchmark itself.

`athanor bench NAME --json >> benchmarks/performance.jsonl` keeps what one has measured; a later row of the same metric
replaces the earlier one. `python benchmarks/performance_page.py` then writes a table a benchmark, under what its script
says of itself, with the command that measures it again; what was not measured is not shown.
"""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
MEASURED, PAGE = ROOT / "benchmarks" / "performance.jsonl", ROOT / "docs" / "performance.md"
HEAD = """# Performance

Made by `python benchmarks/performance_page.py` from the rows that `athanor bench NAME --json` printed. A ratio is the
value over the peer's, both measured in one run on one machine; a target is what the value should reach.
"""
COLUMNS = ("metric", "value", "unit", "target", "peer", "ratio", "met")


def page(rows: list[dict[str, Any]], folder: Path = ROOT / "benchmarks") -> str:
    """A section for each benchmark that has rows, in the order of their names."""
    newest: dict[str, dict[str, dict[str, Any]]] = {}
    for row in rows:
        newest.setdefault(row["bench"], {})[row["metric"]] = row
    return HEAD + "".join(section(name, list(newest[name].values()), folder) for name in sorted(newest))


def section(name: str, rows: list[dict[str, Any]], folder: Path) -> str:
    script = ast.parse((folder / f"{name}.py").read_text(encoding="utf-8"))
    columns: tuple[str, ...] = COLUMNS
    if any(isinstance(part, ast.Assign) and ast.unparse(part.targets[0]) == "PIVOTED" for part in script.body):
        columns, rows = pivoted(rows)
    shown = [column for column in columns if any(row.get(column) is not None for row in rows)]
    lines = ["| " + " | ".join(shown) + " |", "|" + "---|" * len(shown)]
    lines += ["| " + " | ".join(cell(row.get(column)) for column in shown) + " |" for row in rows]
    about = ast.get_docstring(script) or ""
    return f"\n## {name}\n\n{about}\n\n`athanor bench {name}`\n\n" + "\n".join(lines) + "\n"


def pivoted(rows: list[dict[str, Any]]) -> tuple[tuple[str, ...], list[dict[str, Any]]]:
    """Metrics "WHAT: MEASURE" as a line for each what and a column for each measure, named with its unit."""
    lines: dict[str, dict[str, Any]] = {}
    columns = ["metric"]
    for row in rows:
        what, _, measure = row["metric"].rpartition(": ")
        column = f"{measure}, {row['unit']}" if row["unit"] else measure
        columns += [column] if column not in columns else []
        lines.setdefault(what, {"metric": what})[column] = row["value"]
    return tuple(columns), list(lines.values())


def cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,.4g}" if isinstance(value, float) else str(value).replace("|", "\\|")


def main(source: Path = MEASURED, target: Path = PAGE) -> None:
    if not source.exists():
        raise SystemExit(f"{source} does not exist: athanor bench --issue C --json > {source}")
    rows = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines() if line.strip()]
    target.write_text(page(rows), encoding="utf-8")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
