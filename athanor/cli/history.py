"""`athanor history`: the runs of this machine, how they stand and how good they are, and several of them compared."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any

import typer

from athanor.base.progress import duration, quantity
from athanor.base.run import RUNS
from athanor.cli.output import AsJson, print_json, print_table

if TYPE_CHECKING:
    from athanor.science.history import Group, RunRecord

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.callback(invoke_without_command=True)
def history(context: typer.Context, json: AsJson = False) -> None:
    """List the runs of this machine."""
    from athanor.science.history import list_runs

    if context.invoked_subcommand:
        return
    runs = list_runs(RUNS)
    if json:
        print_json({"runs": [run.as_dict() for run in runs]})
    elif not runs:
        print(f"There are no runs in {RUNS}/ yet; `athanor run` makes one.")
    else:
        columns = ("name", "state", "time", "size", "loss", "bits/byte", "tokens/s", "date")
        print_table(columns, [_row(run) for run in runs], columns[2:-1])
        print("\nbits/byte: held out, of the base model; lower is better. --json has more.")
        for run in runs:
            if run.error:
                print(f"{run.name}: {run.error}")
            elif run.state == "stopped":
                reached = f" after {run.stages[-1]}" if run.stages else ""
                print(f"{run.name}: stopped{reached}; the command that began it continues.")


@app.command()
def compare(
    runs: Annotated[list[str], typer.Argument(help="Two or more: runs, arms or experiments, by name or folder.")],
    output: Annotated[
        Path | None,
        typer.Option(help="Where to draw: a .png; an .svg is written beside it. [default: in the first run]"),
    ] = None,
    json: AsJson = False,
) -> None:
    """Compare runs: what differs in their settings, how they ended, and their curves in a picture."""
    from athanor.base.errors import RunError
    from athanor.science.history import differing_settings, find_group, read_run

    found = [group for name in runs for group in find_group(name, RUNS)]
    groups = list({tuple(folder.resolve() for folder in group.folders): group for group in found}.values())
    if len(groups) < 2:
        raise RunError("A comparison needs two runs.", "Name another one, or an experiment with several arms.")
    if output is not None and output.suffix != ".png":
        raise RunError(f"{output} is not the name of a picture.", "Give one that ends in .png; the .svg is beside it.")
    from athanor.science.plots import draw_runs

    records = [[read_run(folder, RUNS) for folder in group.folders] for group in groups]
    settings = differing_settings([group.folders[0] for group in groups])
    place = output or groups[0].folders[0] / "compare.png"
    plots = [str(path) for path in draw_runs(groups, place)]
    if json:
        compared = [{"name": group.name, "runs": [run.as_dict() for run in of_group]}
                 for group, of_group in zip(groups, records, strict=True)]  # fmt: skip
        print_json({"groups": compared, "settings": settings, "plots": plots})
        return
    _print_comparison(groups, records, settings)
    print(f"\nPlot: {plots[0]} and {Path(plots[1]).name}")


def _print_comparison(groups: list[Group], records: list[list[RunRecord]], settings: dict[str, list[Any]]) -> None:
    columns = ("run", "runs", "size", "tokens", "seconds", "loss", "bits/byte", "tokens/s", "of peak")
    rows = [_group_row(group.name, runs) for group, runs in zip(groups, records, strict=True)]
    print_table(columns, rows, columns[1:])
    if settings:
        print("\nSettings that differ:")
        print_table(
            ("setting", *(group.name for group in groups)),
            [[key, *("default" if value is None else value for value in values)] for key, values in settings.items()],
        )


def _group_row(name: str, runs: list[RunRecord]) -> list[str]:
    """Means over the group's runs."""

    def mean(values: list[float | None], form: str = "{:,.0f}") -> str:
        known = [value for value in values if value is not None]
        return form.format(fmean(known)) if known else ""

    tokens = [run.tokens for run in runs if run.tokens]
    return [
        name,
        str(len(runs)),
        quantity(runs[0].parameters) if runs[0].parameters else "",
        quantity(fmean(tokens)) if tokens else "",
        mean([run.seconds for run in runs]),
        mean([run.loss for run in runs], "{:.3f}"),
        mean([(run.heldout_bits_per_byte or {}).get("base") for run in runs], "{:.4f}"),
        mean([run.tokens_per_second for run in runs]),
        mean([run.share_of_peak for run in runs], "{:.0%}"),
    ]


def _row(run: RunRecord) -> list[str]:
    bits = (run.heldout_bits_per_byte or {}).get("base")
    return [
        run.name,
        run.state,
        duration(run.seconds),
        quantity(run.parameters) if run.parameters else "",
        "" if run.loss is None else f"{run.loss:.3f}",
        "" if bits is None else f"{bits:.3f}",
        "" if run.tokens_per_second is None else f"{run.tokens_per_second:,.0f}",
        run.date[5:],
    ]
