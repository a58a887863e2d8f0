"""`athanor models`: what can be had: packaged models, those that runs on this machine have made, and those in the
Hugging Face cache.
"""

from __future__ import annotations

from typing import Annotated

import typer

from athanor.base.errors import ModelError
from athanor.base.run import RUNS, finished_models, run_folders
from athanor.cli.output import AsJson, print_json, print_table


def models(
    fetch: Annotated[str | None, typer.Option(metavar="MODEL", help="Fetch this model and print where it is.")] = None,
    accept_terms: Annotated[
        str | None, typer.Option(metavar="NAME", help="Accept a model's terms of use, say gemma; it is remembered.")
    ] = None,
    json: AsJson = False,
) -> None:
    """List the models that can be had."""
    from athanor.base.progress import say

    if accept_terms is not None:
        _accept(accept_terms)
        say(f"The terms {accept_terms!r} are accepted.")
    if fetch is not None:
        from athanor.engine.locate import find_model

        place = find_model(fetch)
        print_json({"name": fetch, "where": str(place)}) if json else print(place)
    elif accept_terms is None or json:
        _list(json)


def _accept(key: str) -> None:
    from athanor.models.catalogue import MODELS
    from athanor.models.terms import remember

    known = {model.terms.key: model.terms for model in MODELS.values() if model.terms}
    if key not in known:
        raise ModelError(f"There are no terms called {key!r}.", f"Known: {', '.join(known)}.")
    remember(known[key])


def _list(json: bool) -> None:
    from athanor.base.progress import quantity, size
    from athanor.models.catalogue import MODELS
    from athanor.models.hub import SCHEME, cached_models

    packaged, cached = list(MODELS.values()), cached_models()
    made = [{"name": run.name, "where": str(found[0])} for run in run_folders(RUNS) if (found := finished_models(run))]
    if json:
        listed = [
            {
                "name": model.name, "where": str(model.place) if model.is_here else None, "bytes": model.download_size,
                "parameters": model.parameters, "licence": model.licence, "about": model.about,
                "terms": model.terms.address if model.terms else None,
            }
            for model in packaged
        ]  # fmt: skip
        hub = [{"name": m.name, "where": str(m.place), "kind": m.kind, "bytes": m.size} for m in cached]
        print_json({"packaged": listed, "runs": made, "hub": hub})
        return
    rows = [
        (
            model.name,
            f"{quantity(model.parameters)} parameters, {model.about}, "
            + (f"terms: {model.terms.title}" if model.terms else model.licence),
            "here" if model.is_here else f"{size(model.download_size)} to fetch",
        )
        for model in packaged
    ]
    rows += [(run["name"], "made here", run["where"]) for run in made]
    rows += [(model.name, f"{model.kind}, {size(model.size)}", "Hugging Face cache") for model in cached]
    print_table(("name", "what it is", "where"), rows)
    print(f"{SCHEME}org/name fetches any other of the Hugging Face hub whose kind is read here.")
