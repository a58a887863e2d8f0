"""Models between formats: a Hugging Face folder, which transformers and vLLM load too, and a GGUF file for llama.cpp.

Whatever `find_model` finds is read, of any family; weights are changed only where a smaller number format is asked for.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from athanor.base.errors import ModelError
from athanor.base.files import atomic_folder, read_json, to_json
from athanor.base.progress import say
from athanor.engine.language_model import load
from athanor.engine.locate import find_model
from athanor.models.build import Model, count_parameters
from athanor.models.config import EncoderDecoderConfig
from athanor.models.families import Config, families, read_config
from athanor.models.files import BESIDE, INDEX
from athanor.models.folder import load_model, save_model
from athanor.models.gguf.load import model_of
from athanor.models.gguf.reader import GgufFile
from athanor.models.gguf.save import FORMATS, save_gguf
from athanor.tokenizer.gguf import from_gguf
from athanor.tokenizer.gguf_writing import to_gguf

Target = Literal["hf", "gguf"]

_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_CARRIED = (*BESIDE, "athanor.json")
_MORE = ("config.json", "generation_config.json", INDEX, "README.md", "LICENSE", ".gitattributes")
"""What else a model folder may hold."""
_ROLES = ("bos_token_id", "eos_token_id", "pad_token_id")
_OF_GENERATION = ("decoder_start_token_id", "forced_bos_token_id", "forced_eos_token_id")
"""What older folders say in config.json alone; beside a generation_config.json transformers looks nowhere else."""


@dataclass(frozen=True)
class Converted:
    """bytes: on disk. context: tokens that a reader will accept, which is less where it follows no windows. portable:
    whether programs other than Athanor compute the model.
    """

    place: Path
    family: str
    parameters: int
    form: str
    bytes: int
    context: int | None = None

    @property
    def portable(self) -> bool:
        return families()[self.family].portable


def convert(
    source: str | Path, destination: Path | str, to: Target, form: str | None = None, *, replace: bool = False
) -> Converted:
    """Writes `source` to `destination`, a folder ("hf") or a file ("gguf").

    form: of the matrices, by default as they are in a folder (F32 of a GGUF file), and F16 (BF16 where they are that)
    in a file. Raises ModelError for a format that is not written there or cannot hold the weights, or a destination
    that exists, unless `replace`; only files and folders that hold nothing but a model are replaced, and never the
    source, a part of a run, or the folder where the user is or lives.
    """
    place, destination = find_model(source), Path(destination)
    known = FORMATS if to == "gguf" else tuple(_DTYPES)
    if form is not None and form.upper() not in known:
        raise ModelError(f"{form} is not written to {to}.", f"Written are: {', '.join(known)}.")
    _check_destination(place, destination, to, replace)
    write = _to_gguf if to == "gguf" else _to_folder
    made = write(place, destination, form.upper() if form else None)
    if not made.portable:
        say(f"Models of the family {made.family} are computed by Athanor alone: other programs will refuse the folder.")
    return made


def _check_destination(place: Path, destination: Path, to: Target, replace: bool) -> None:
    if to == "gguf" and destination.suffix != ".gguf":
        raise ModelError(f"{destination} does not end in .gguf.", "By that a GGUF file is known.")
    if to == "hf" and destination.suffix == ".gguf":
        raise ModelError(
            f"{destination} would be a folder, and what ends in .gguf is read as a file.",
            "Choose another name; `athanor export` writes GGUF files.",
        )
    if not destination.exists():
        return
    source = place.resolve()
    if destination.resolve() in (source, *source.parents):
        raise ModelError(f"{destination} is or holds the model that is read.", "Choose another name.")
    if not replace:
        raise ModelError(f"{destination} exists.", "Choose another name, or replace it with --force.")
    if to == "gguf" and destination.is_dir():
        raise ModelError(f"{destination} is a folder.", "A GGUF file needs the name of a file.")
    if to == "hf" and (reason := _why_kept(destination)):
        raise ModelError(f"{destination} {reason}, so it is not replaced.", "Choose another name.")


def _why_kept(folder: Path) -> str:
    """Why a folder must not be replaced; nothing for one that holds a model and nothing else."""
    here, home = Path.cwd(), Path.home().resolve()
    whole = folder.resolve()
    if whole in (here, *here.parents, home, *home.parents):
        return "is or holds the folder where you are, or your home"
    if folder.is_symlink():
        return "is a link"
    if (whole.parent / "stage.json").is_file():
        return "belongs to a run"
    if not (folder / "config.json").is_file():
        return "is no model folder"
    strange = sorted(path.name for path in folder.iterdir() if not _is_of_a_model(path))
    return f"holds {strange[0]}, which is no part of a model" if strange else ""


def _is_of_a_model(path: Path) -> bool:
    if path.is_symlink():
        return False
    if path.is_dir():
        return path.name == "1_Pooling" and {file.name for file in path.iterdir()} <= {"config.json"}
    return path.name in (*_CARRIED, *_MORE) or path.suffix in (".safetensors", ".bin")


def _config(folder: Path) -> Config | None:
    path = folder / "config.json"
    settings = read_json(path) if path.is_file() else None
    return read_config(settings, str(path))[1] if isinstance(settings, dict) else None


def _to_gguf(place: Path, destination: Path, form: str | None) -> Converted:
    if place.is_dir() and isinstance(_config(place), EncoderDecoderConfig):
        raise ModelError(f"{place} holds no decoder but an EncoderDecoder.", "GGUF files are written of decoders.")
    lm = load(place)
    form = form or ("BF16" if _is_bf16(place, lm.model) else "F16")
    words = to_gguf(lm.tokenizer, lm.model.config.vocab_size)
    config = save_gguf(lm.model, destination, form, {"general.name": _name(place), **words})
    size = destination.stat().st_size
    context = config.max_seq_len if config.max_seq_len < lm.model.config.max_seq_len else None
    return Converted(destination, config.family, count_parameters(lm.model.config), form, size, context)


def _is_bf16(place: Path, model: Model) -> bool:
    if place.suffix == ".gguf":  # read as fp32
        return any(tensor.format.name == "BF16" for tensor in GgufFile(place).tensors.values())
    return next(model.parameters()).dtype == torch.bfloat16


def _name(place: Path) -> str:
    """Of the model: that of its file or folder, of its run for a stage of one."""
    if place.name == "model":
        place = place.parent.parent if (place.parent.parent / "run.json").is_file() else place.parent
    name = place.stem if place.suffix == ".gguf" else place.name
    return name.encode("utf-8", "replace").decode()


def _to_folder(place: Path, destination: Path, form: str | None) -> Converted:
    dtype = _DTYPES[form] if form else None
    model: Model
    with atomic_folder(destination) as folder:
        if place.suffix == ".gguf":
            file = GgufFile(place)
            model, tokenizer = model_of(file, dtype), from_gguf(file.metadata, str(place))
            tokenizer.save(folder, model.config.max_seq_len)
            named = tokenizer.control.get(tokenizer.names.get("bos_token", ""))
            start = tokenizer.start_ids[0] if tokenizer.start_ids else named
            generation: dict[str, Any] = {"suppress_tokens": list(tokenizer.never_said) or None}
            stops, pad = tokenizer.stop_ids, tokenizer.pad_id
            save_model(model, folder, end_of_text_id=pad, stop_ids=stops, start_id=start, generation=generation)
        else:
            model = load_model(place, dtype)
            _save_as_it_was(model, place, folder)
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    stored = next(model.parameters()).dtype
    written = next(name for name, dtype in _DTYPES.items() if dtype == stored)
    return Converted(destination, model.config.family, count_parameters(model.config), written, size)


def _save_as_it_was(model: Model, place: Path, folder: Path) -> None:
    """With the ids, the sampling defaults and the tokenizer of the folder that it was read from."""
    settings, generation = _settings(place / "config.json"), _settings(place / "generation_config.json")
    found = {**settings, **{key: value for key, value in generation.items() if value is not None}}
    start, stops, pad = (found.get(key) for key in _ROLES)
    ends = [] if stops is None else stops if isinstance(stops, list) else [stops]
    generation = {**{key: settings[key] for key in _OF_GENERATION if settings.get(key) is not None}, **generation}
    save_model(model, folder, end_of_text_id=pad, stop_ids=tuple(ends), start_id=start, generation=generation)
    for name in _CARRIED:
        if (place / name).is_file():
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(place / name, folder / name)


def _settings(file: Path) -> Mapping[str, Any]:
    found = read_json(file) if file.is_file() else {}
    try:
        to_json(found).encode()
    except ValueError as error:
        raise ModelError(f"{file} holds what cannot be written again ({error}).", "Remove it from there.") from None
    return found if isinstance(found, dict) else {}
