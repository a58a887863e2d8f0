"""The model folder, as Hugging Face lays it out: `config.json`, `model.safetensors`, `generation_config.json`, and our
`athanor.json`.

The tokenizer's files are written beside these by the tokenizer itself. Nothing here executes what it loads.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from athanor.base.errors import ModelError
from athanor.base.files import atomic_path, read_json, write_json
from athanor.models.decoder import Decoder
from athanor.models.families import FAMILIES, Family, family_of, qwen3

WEIGHTS = "model.safetensors"
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def save_model(
    model: Decoder,
    folder: Path | str,
    *,
    end_of_text_id: int | None = None,
    stop_ids: tuple[int, ...] = (),
    generation: dict[str, Any] | None = None,
    lineage: dict[str, Any] | None = None,
) -> None:
    """Writes the folder. generation: sampling defaults for `generation_config.json`; lineage: what goes into
    `athanor.json`.
    """
    folder = Path(folder)
    family = FAMILIES[qwen3.ARCHITECTURE]
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    tokens = {"eos_token_id": stop_ids[0] if stop_ids else None, "pad_token_id": end_of_text_id, "bos_token_id": None}
    weights = {family.weight_name(name): parameter.detach() for name, parameter in model.named_parameters()}
    for name, tensor in weights.items():
        if not torch.isfinite(tensor).all():
            raise ModelError(f"Training has diverged: {name} has values that are not numbers.", "Lower the rates.")
    with atomic_path(folder / WEIGHTS) as temporary:
        write_tensors(temporary, weights)
    write_json(
        folder / "config.json", {**family.write_config(model.config), **tokens, "dtype": dtype, "torch_dtype": dtype}
    )
    write_json(
        folder / "generation_config.json",
        {**(generation or {}), "eos_token_id": list(stop_ids), "pad_token_id": end_of_text_id},
    )
    write_json(folder / "athanor.json", lineage or {})


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """A safetensors file. Raises ModelError when it cannot be written."""
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})
    except SafetensorError as error:  # a full disk, mostly
        shown = path.with_name(path.name.removeprefix(".").removesuffix(".partial"))
        raise ModelError(f"{shown} could not be written ({error}).", "Is there space left on the disk?") from None


def load_model(folder: Path | str, dtype: torch.dtype | None = None) -> Decoder:
    """Reads a model folder; weights are memory-mapped and then copied once.

    dtype: of the module's weights, by default as on disk. Raises ModelError on a missing, corrupt or unknown file.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder} is not a model folder: it has no config.json.")
    settings = read_json(folder / "config.json")
    if not isinstance(settings, dict):
        raise ModelError(f"{folder / 'config.json'} is not a JSON object.")
    family = family_of(settings, str(folder / "config.json"))
    try:
        config = family.read_config(settings)
    except (TypeError, ValueError, AttributeError) as error:
        raise ModelError(f"{folder / 'config.json'} has a value of the wrong kind ({error}).") from None
    with torch.device("meta"):
        model = Decoder(config)
    state = _read_weights(model, folder / WEIGHTS, family, dtype)
    model.load_state_dict(state, strict=True, assign=True)
    return model.eval()


def _read_weights(model: Decoder, path: Path, family: Family, dtype: torch.dtype | None) -> dict[str, torch.Tensor]:
    state = {}
    try:
        with safe_open(path, framework="pt") as file:
            present = set(file.keys())
            for name, parameter in model.named_parameters():
                stored = family.weight_name(name)
                if stored not in present:
                    raise ModelError(f"{path} lacks the weight {stored}.")
                tensor = file.get_tensor(stored)
                if tensor.shape != parameter.shape:
                    raise ModelError(
                        f"{path}: {stored} has shape {tuple(tensor.shape)}, config.json says {tuple(parameter.shape)}."
                    )
                if tensor.dtype not in _DTYPES:
                    raise ModelError(
                        f"{path}: {stored} is stored as {tensor.dtype}.", "Read are float32, float16 and bfloat16."
                    )
                if not torch.isfinite(tensor).all():
                    raise ModelError(f"{path}: {stored} has values that are not numbers.", "The file is damaged.")
                state[name] = tensor.to(dtype or tensor.dtype).clone()
                present.discard(stored)
    except FileNotFoundError:
        raise ModelError(f"{path} cannot be read." if path.exists() else f"{path} does not exist.") from None
    except SafetensorError as error:
        raise ModelError(
            f"{path} is not a valid safetensors file ({error}).", "Copy it again; it may be cut short."
        ) from None
    present -= {"lm_head.weight"} if model.head is None else set()
    if present:
        raise ModelError(
            f"{path} holds weights that {family.architecture} does not have: {', '.join(sorted(present)[:3])}."
        )
    return state
