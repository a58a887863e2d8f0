"""`athanor ablate`: does a change of the recipe help? Pairs of trainings, seed by seed, and a verdict."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from athanor.cli.output import AsJson, print_json, print_table

DEFAULT_TIME = "2m"


def ablate(
    recipe: Annotated[str, typer.Argument(help="The baseline: a shipped recipe or a .toml file.")] = "default",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="An arm: --set pretrain.optimizer.muon_lr=0.02; each is an arm of its own."),
    ] = None,
    arms: Annotated[
        Path | None,
        typer.Option(help="Arms of several settings: a TOML file with a table each; `baseline` changes all."),
    ] = None,
    by: Annotated[str, typer.Option(help="What all arms get alike: time, tokens or steps.")] = "time",
    budget: Annotated[
        str | None, typer.Option(help="How much of it: 2m, 500k (tokens) or 300 (steps). [default: 2m of time]")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, max=100, help="Pairs of trainings for each arm.")] = 3,
    name: Annotated[
        str | None, typer.Option(help="Name of the experiment; it lives in ./runs/NAME. [default: ablate-RECIPE]")
    ] = None,
    json: AsJson = False,
) -> None:
    """Compare changes of a recipe with it: pre-training alone, paired by seed, with an interval and a verdict."""
    from athanor.base.errors import RecipeError
    from athanor.pipeline.arms import read_arms, read_extent
    from athanor.pipeline.folders import run_folder
    from athanor.pipeline.recipe_files import read_settings

    if budget is None and by != "time":
        raise RecipeError(f"--by {by} needs a --budget.", "For example --by tokens --budget 500k.")
    extent = read_extent(by, budget or DEFAULT_TIME)
    values = read_settings(recipe)
    baseline, others = read_arms(settings or (), arms)
    title = Path(recipe).stem
    folder = run_folder(name or f"ablate-{title}")
    from athanor.pipeline.experiment import Experiment  # after the arguments are checked: it brings torch

    command = _command(recipe, settings or [], arms, by, budget or DEFAULT_TIME, seeds)
    result = Experiment(folder, title, values, extent).run(baseline, others, seeds, command)
    from athanor.science.ablation import COLUMNS, sentences, table
    from athanor.science.plots import draw_experiment

    plots = draw_experiment(result, folder)
    if json:
        print_json(result)
        return
    print_table(COLUMNS, table(result["arms"]), COLUMNS[1:-1])
    print("\n" + "\n".join(sentences(result)))
    print("\nIntervals are Student's paired t over the seeds; lower is better.")
    print(f"Diary:  {folder / 'results.md'}\nPlot:   {plots[0]}")


def _command(recipe: str, settings: list[str], arms: Path | None, by: str, budget: str, seeds: int) -> str:
    """What would repeat the experiment elsewhere."""
    from shlex import join

    words = ["athanor", "ablate", recipe]
    for setting in settings:
        words += ["--set", setting]
    words += ["--arms", str(arms)] if arms else []
    return join([*words, "--by", by, "--budget", budget, "--seeds", str(seeds)])
