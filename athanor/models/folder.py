"""The model folder, as Hugging Face lays it out: `config.json`, `model.safetensors` (or shards with an index),
`generation_config.json`, and our `athanor.json`.

The tokenizer's files are written beside these by the tokenizer itself. Nothing here executes what it loads.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from athanor.base.errors import ModelError
from athanor.base.files import atomic_path, read_json, write_json
from athanor.models.build import Model, empty
from athanor.models.config import ModelConfig
from athanor.models.decoder import Decoder
from athanor.models.families import Config, Family, families, read_config, write_config
from athanor.models.families.weights import Naming, applicable
from athanor.models.files import INDEX, NGRAMS, WEIGHTS, shard_names
from athanor.models.ngrams import NGrams

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_MAPPED = 1 << 24


def save_model(
    model: Model,
    folder: Path | str,
    *,
    end_of_text_id: int | None = None,
    stop_ids: tuple[int, ...] = (),
    start_id: int | None = None,
    generation: Mapping[str, Any] | None = None,
    lineage: dict[str, Any] | None = None,
) -> None:
    """Writes the folder. end_of_text_id: pads, too. start_id: what a text begins with. generation: sampling defaults
    for `generation_config.json`. lineage: what goes into `athanor.json`, which marks a model that was made here.

    Raises ModelError for a model that its family's settings cannot describe, or that has diverged.
    """
    folder = Path(folder)
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    given = {
        "eos_token_id": stop_ids[0] if stop_ids else None, "pad_token_id": end_of_text_id, "bos_token_id": start_id
    }  # fmt: skip
    settings = write_config(model.config)  # may hold token ids: what RoBERTa computes depends on padding
    weights = their_weights(model)
    for name, tensor in weights.items():
        if not _is_finite(tensor):
            raise ModelError(f"Training has diverged: {name} has values that are not numbers.", "Lower the rates.")
    with atomic_path(folder / WEIGHTS) as temporary:
        write_tensors(temporary, weights)
    if isinstance(model, Decoder) and (memory := model.embedding.memory) is not None:
        memory.counted.save(folder / NGRAMS)
    tokens = {name: settings.get(name) if token is None else token for name, token in given.items()}
    write_json(folder / "config.json", {**settings, **tokens, "dtype": dtype, "torch_dtype": dtype})
    ids = {**tokens, "eos_token_id": list(stop_ids) or None}
    if "decoder_start_token_id" in settings:
        ids["decoder_start_token_id"] = settings["decoder_start_token_id"]
    write_json(folder / "generation_config.json", {**(generation or {}), **ids})
    if lineage is not None:
        write_json(folder / "athanor.json", lineage)


def their_weights(model: Model) -> dict[str, Tensor]:
    """The weights under the names, and in the shapes, of the model's family."""
    config = model.config
    ours = {name: parameter.detach() for name, parameter in model.named_parameters()}
    written: dict[str, Tensor] = {}
    for rule in applicable(families()[config.family].rules(config), ours, _depth(config)):
        written |= zip(rule.theirs, rule.write([ours[name] for name in rule.ours]), strict=True)
    return written


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """A safetensors file. Raises ModelError when it cannot be written."""
    try:
        path.touch()  # with the rights of other new files: the library would make one that only its owner may read
        mode = path.stat().st_mode
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})
        path.chmod(mode)
    except SafetensorError as error:  # a full disk, mostly
        shown = path.with_name(path.name.removeprefix(".").removesuffix(".partial"))
        raise ModelError(f"{shown} could not be written ({error}).", "Is there space left on the disk?") from None


def load_model(folder: Path | str, dtype: torch.dtype | None = None, device: str | torch.device = "cpu") -> Model:
    """Reads a model folder, or a GGUF file; weights are memory-mapped.

    dtype: of the module's weights, by default as in a folder, and fp32 from a file. Raises ModelError on a missing,
    corrupt or unknown file.
    """
    folder = Path(folder)
    if folder.suffix == ".gguf" and folder.is_file():
        from athanor.models.gguf.load import load_gguf

        return load_gguf(folder, dtype).to(device)
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"{folder} is not a model folder: it has no config.json.",
            f"`athanor.load({str(folder)!r}).model` takes names and runs as well.",
        )
    settings = read_json(folder / "config.json")
    if not isinstance(settings, dict):
        raise ModelError(f"{folder / 'config.json'} is not a JSON object.")
    family, config = read_config(settings, str(folder / "config.json"))
    weights = _open_weights(folder, family)
    check_depth(config, weights)
    model = empty(_as_held(config, weights, family))
    state = read_weights(model, weights, family.naming(model.config), dtype, device)
    model.load_state_dict(state, strict=True, assign=True)
    if isinstance(model, Decoder) and (memory := model.embedding.memory) is not None:
        memory.table = NGrams.load(folder / NGRAMS, model.config.vocab_size, memory.longest)
    return model.eval()


def load_decoder(folder: Path | str, dtype: torch.dtype | None = None, device: str | torch.device = "cpu") -> Decoder:
    """`load_model` where only a decoder will do. Raises ModelError for another kind."""
    model = load_model(folder, dtype, device)
    if not isinstance(model, Decoder):
        raise ModelError(
            f"{folder} holds no decoder but an {type(model).__name__}, which does not continue a text.",
            "Take a decoder; `athanor embed` embeds texts with an encoder.",
        )
    return model


def check_depth(config: Config, weights: Weights) -> None:
    """Raises ModelError for more layers than there are weights, before any of them is made."""
    for part in (config,) if isinstance(config, ModelConfig) else (config.encoder, config.decoder):
        if part.n_blocks > len(weights.get):
            raise ModelError(
                f"{weights.place} lacks the weights of {part.n_layers} layers: it holds {len(weights.get)} tensors."
            )


def _depth(config: Config) -> int:
    if isinstance(config, ModelConfig):
        return config.n_layers
    return max(config.encoder.n_layers, config.decoder.n_layers)


@dataclass
class Weights:
    """place: where they come from, for messages. get: what reads each, by its name there."""

    place: Path
    get: dict[str, Callable[[], Tensor]]


class _Shard:
    """A safetensors file, memory-mapped. It is mapped anew after every `_MAPPED` bytes, so that pages behind weights
    that became others (another number format, parts of a fused matrix) leave memory while the rest is read.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._behind = path, 0
        self._map()
        self.names: list[str] = self._file.keys()

    def _map(self) -> None:
        try:
            self._file = safe_open(self.path, framework="pt")
        except FileNotFoundError:
            reason = "cannot be read" if self.path.exists() else "does not exist"
            raise ModelError(f"{self.path} {reason}.") from None
        except (SafetensorError, OSError) as error:
            raise _invalid(self.path, error) from None

    def read(self, name: str) -> Tensor:
        if self._behind > _MAPPED:
            self._map()
            self._behind = 0
        try:
            tensor: Tensor = self._file.get_tensor(name)
        except (SafetensorError, OSError, ValueError) as error:
            raise _invalid(self.path, error) from None
        if tensor.dtype not in _DTYPES:
            raise ModelError(
                f"{self.path}: {name} is stored as {tensor.dtype}.", "Read are float32, float16, bfloat16."
            )
        self._behind += tensor.nbytes
        return tensor


def _open_weights(folder: Path, family: Family) -> Weights:
    index = folder / INDEX
    shards = [_Shard(folder / name) for name in (shard_names(index) if index.is_file() else [WEIGHTS])]
    found = Weights(index if index.is_file() else shards[0].path, {})
    for shard in shards:
        for name in shard.names:
            present = family.present_name(name)
            if present in found.get:
                raise ModelError(f"{found.place} holds {present} more than once, perhaps under an older name.")
            found.get[present] = partial(shard.read, name)
    return found


def _invalid(path: Path, error: Exception) -> ModelError:
    return ModelError(f"{path} is not a valid safetensors file ({error}).", "Copy it again; it may be cut short.")


def read_weights(
    model: Model,
    weights: Weights,
    naming: Naming,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
) -> dict[str, Tensor]:
    """The model's state from the weights. Raises ModelError for one that is missing, or of another shape, or that the
    naming does not have.
    """
    wanted = dict(model.named_parameters())
    left, state, absent = set(weights.get), {}, _absent_prefix(weights, naming.prefix)
    for rule in applicable(naming.rules, wanted, _depth(model.config)):
        names = [name.removeprefix(absent) for name in rule.theirs]
        if missing := [name for name in names if name not in weights.get]:
            raise ModelError(f"{weights.place} lacks the weight {missing[0]}.")
        try:
            made = rule.read([weights.get[name]() for name in names])
        except RuntimeError as error:
            raise ModelError(f"{weights.place}: {names[0]} has a shape that does not fit ({error}).") from None
        left -= set(names)
        for ours, tensor in zip(rule.ours, made, strict=True):
            if tensor.shape != wanted[ours].shape:
                raise ModelError(
                    f"{weights.place}: {names[0]} makes a weight of shape {tuple(tensor.shape)}, its configuration "
                    f"says {tuple(wanted[ours].shape)}."
                )
            if not _is_finite(tensor):
                raise ModelError(
                    f"{weights.place}: {names[0]} has values that are not numbers.", "The file is damaged."
                )
            state[ours] = tensor.to(device, dtype or tensor.dtype)
            if torch.finfo(state[ours].dtype).max < torch.finfo(tensor.dtype).max:
                _check_held(state[ours], weights.place, names[0])
    strange = [name for name in left if not any(re.fullmatch(pattern, name) for pattern in naming.unused)]
    if strange:
        raise ModelError(
            f"{weights.place} holds weights that {naming.owner} does not have: {', '.join(sorted(strange)[:3])}."
        )
    return state


def _is_finite(tensor: Tensor) -> bool:
    """Whether all values are numbers; without a copy of them, which `isfinite` would make."""
    return tensor.numel() == 0 or all(bool(torch.isfinite(end)) for end in tensor.aminmax())


def _check_held(tensor: Tensor, place: Path, name: str) -> None:
    if not _is_finite(tensor):
        form = str(tensor.dtype).removeprefix("torch.")
        raise ModelError(f"{place}: {name} holds numbers that {form} cannot.", "bfloat16 (BF16) and float32 (F32) can.")


def _absent_prefix(weights: Weights, prefix: str) -> str:
    """What names lack on disk: a model saved without a head is saved without the prefix."""
    return "" if any(name.startswith(prefix) for name in weights.get) else prefix


def _as_held(config: Config, weights: Weights, family: Family) -> Config:
    """`config`, with the parts for which the files hold weights, where a configuration does not tell."""
    if isinstance(config, ModelConfig) and config.pooler and not (config.next_sentence or config.classifier):
        absent, rules = _absent_prefix(weights, family.prefix), family.rules(config)
        pooler = [name for rule in rules if rule.ours[0].startswith("pooler.") for name in rule.theirs]
        if not any(name.removeprefix(absent) in weights.get for name in pooler):
            config = replace(config, pooler=False)  # as models of sentences are often saved
    return _with_own_head(config, weights, family)


def _with_own_head(config: Config, weights: Weights, family: Family) -> Config:
    """`config`, with a head of its own where it is said to be tied and the files hold another matrix for it.

    So transformers reads them, and so from 5 on it writes T5 1.1 and mT5, as tied, with both matrices.
    """
    last = config if isinstance(config, ModelConfig) else config.decoder
    if last.head is None or not last.head.tied:
        return config
    changed = replace(last, head=replace(last.head, tied=False))
    untied = changed if isinstance(config, ModelConfig) else replace(config, decoder=changed)
    places = {ours: rule for rule in family.rules(untied) for ours in rule.ours}
    side = "" if isinstance(config, ModelConfig) else "encoder." if config.shared_embedding else "decoder."
    head, tokens = places.get("head.weight"), places.get(f"{side}embedding.tokens.weight")
    if head is None or tokens is None or not all(name in weights.get for name in (*head.theirs, *tokens.theirs)):
        return config
    one, other = (rule.read([weights.get[name]() for name in rule.theirs])[0] for rule in (head, tokens))
    return config if torch.equal(one, other) else untied
