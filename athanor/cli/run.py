"""`athanor run`: the whole life of a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def run(
    recipe: Annotated[
        str | None,
        typer.Argument(
            help="A shipped recipe (default, memory, smoke, bert, roberta, electra, t5, ul2, prefix, fim, moe, "
            "distill) or a .toml file. [default: default]"
        ),
    ] = None,
    budget: Annotated[str | None, typer.Option(help="Time for the whole job, such as 4m, 2h or 1d (from 2m).")] = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the run; it lives in ./runs/NAME. [default: the recipe's]")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Change a setting: --set pretrain.steps=200")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random.")] = None,
    plan: Annotated[
        Path | None, typer.Option(help="Repeat the run that this plan.json is from, recipe, seed and all.")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over, even if stages are finished.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as one JSON object.")] = False,
) -> None:
    """Make a model: corpus, tokenizer, pre-training, fine-tuning, reinforcement learning, evaluation, report card.

    The recipes from bert to distill end after pre-training, with their objective's held-out figure.
    """
    from athanor.base.errors import RecipeError
    from athanor.base.files import to_json
    from athanor.pipeline.folders import run_folder
    from athanor.pipeline.plans import read_run_plan
    from athanor.pipeline.recipe_files import load_recipe
    from athanor.pipeline.summary import summary

    repeated = None
    if plan is None:
        chosen = load_recipe(recipe or "default", settings or (), budget=budget, seed=seed)
        root, made_from = run_folder(name or Path(recipe or "default").stem), recipe or "default"
    else:
        if recipe or settings or budget or seed is not None:
            raise RecipeError("--plan brings its own recipe.", "Leave out RECIPE, --budget, --set and --seed.")
        repeated = read_run_plan(plan)
        chosen = repeated.recipe
        source = plan.resolve()
        origin = source.parent.name if source.name == "plan.json" else source.stem
        root, made_from = run_folder(name or f"{origin}-again"), f"plan of {origin}"
    from athanor.pipeline.job import live  # after the arguments are checked: it brings torch

    report = live(chosen, root, fresh=fresh, repeated=repeated, made_from=made_from)
    if report is None:
        return  # one of several processes, of which the first reports
    typer.echo(to_json(report) if as_json else summary(report, root), nl=not as_json)
