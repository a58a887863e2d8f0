"""`athanor models`: what can be talked to: packaged models, and those that runs on this machine have made."""

from __future__ import annotations

from athanor.base.run import RUNS, finished_models, run_folders
from athanor.cli.output import AsJson, print_json, print_table


def models(json: AsJson = False) -> None:
    """List the models that can be had."""
    from athanor.base.progress import quantity, size
    from athanor.models.catalogue import MODELS

    packaged = list(MODELS.values())
    made = [{"name": run.name, "where": str(found[0])} for run in run_folders(RUNS) if (found := finished_models(run))]
    if json:
        listed = [
            {
                "name": model.name, "where": str(model.file) if model.is_here else None, "bytes": model.package.size,
                "parameters": model.parameters, "licence": model.licence, "about": model.about,
            }
            for model in packaged
        ]  # fmt: skip
        print_json({"packaged": listed, "runs": made})
        return
    rows = [
        (
            model.name,
            f"{quantity(model.parameters)} parameters, {model.about}, {model.licence}",
            "here" if model.is_here else f"{size(model.package.size)} to fetch",
        )
        for model in packaged
    ]
    print_table(("name", "what it is", "where"), [*rows, *((run["name"], "made here", run["where"]) for run in made)])
