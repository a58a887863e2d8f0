"""A decoder as a GGUF file, for llama.cpp and what is built on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from athanor.base.errors import ModelError
from athanor.models.config import ModelConfig
from athanor.models.decoder import Decoder
from athanor.models.families.weights import Rule, applicable
from athanor.models.gguf.architectures import config_of, metadata_of
from athanor.models.gguf.header import Header
from athanor.models.gguf.packing import format_named
from athanor.models.gguf.rope import rope_tensors, turn_alike
from athanor.models.gguf.writer import Entry, write_file
from athanor.models.position_config import RopeConfig

FORMATS = ("F32", "F16", "BF16", "Q8_0", "Q4_0")
_FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 7, "BF16": 32}  # llama.cpp's llama_ftype
_QUANTISATION_VERSION = 2
# Small, and llama.cpp reads them as fp32.
_KEPT = ("position_embd", "ffn_gate_inp", "exp_probs_b", "attn_q_norm", "attn_k_norm")
_AT_THE_ENDS = ("token_embd.weight", "output.weight")


def save_gguf(
    model: Decoder, path: Path | str, form: str = "F16", metadata: Mapping[str, Any] | None = None
) -> ModelConfig:
    """Writes the file. form: of the matrices, one of FORMATS; norms and biases stay in fp32, and with Q4_0 the table of
    tokens and the head are Q8_0. metadata: the tokenizer's and the model's name.

    Returns the configuration that llama.cpp will compute, which may have a shorter context (`metadata_of`). Raises
    ModelError for a model that it does not compute, or a format that is not written.
    """
    if form not in FORMATS:
        raise ModelError(f"{form!r} is not a format that is written.", f"Written are: {', '.join(FORMATS)}.")
    architecture, config, described = metadata_of(model.config)
    ours = {name: parameter.detach() for name, parameter in model.named_parameters()}
    entries = []
    for name, tensor in rope_tensors(config).items():
        entries.append(Entry(name, tuple(tensor.shape), "F32", partial(_itself, tensor)))
    for rule in applicable(architecture.naming(config).rules, ours, config.n_layers):
        tensors = [ours[name] for name in rule.ours]
        shapes = rule.write([tensor.to("meta") for tensor in tensors])
        for place, (name, shape) in enumerate(zip(rule.theirs, shapes, strict=True)):
            make = partial(_made, rule, tensors, place)
            entries.append(Entry(name, tuple(shape.shape), _form(name, tuple(shape.shape), form), make))
    general = {
        "general.architecture": architecture.name,
        "general.file_type": _FILE_TYPES[form],
        "general.quantization_version": _QUANTISATION_VERSION,
    }
    _check(config, {**general, **described}, entries)
    write_file(path, {**general, **described, **(metadata or {})}, entries)
    return config


def _itself(tensor: Tensor) -> Tensor:
    return tensor


def _made(rule: Rule, tensors: list[Tensor], place: int) -> Tensor:
    return rule.write(tensors)[place]


def _form(name: str, shape: tuple[int, ...], form: str) -> str:
    """The format of one tensor."""
    if len(shape) == 1 or any(part in name for part in _KEPT):
        return "F32"
    if form == "Q4_0" and name in _AT_THE_ENDS:
        form = "Q8_0"
    return form if shape[-1] % format_named(form)[1].numbers == 0 else "F16"


class _Described:
    """What a file would say, before it is written."""

    def __init__(self, metadata: Mapping[str, Any], entries: list[Entry]) -> None:
        self.path, self.metadata = Path("the file"), metadata
        self.tensors = {entry.name: entry for entry in entries}

    def read(self, name: str) -> Tensor:
        return self.tensors[name].make().float()


def _check(config: ModelConfig, metadata: Mapping[str, Any], entries: list[Entry]) -> None:
    """Raises ModelError unless the file says the same model again: what it has no words for would be lost."""
    again = config_of(Header(_Described(metadata, entries)))
    for number, (ours, theirs) in enumerate(zip(config.layers, again.layers, strict=True)):
        if different := _difference(ours, theirs):
            raise _refused(f"{different} in layer {number}")
    for name in ("vocab_size", "d_model", "max_seq_len", "embedding", "norm", "head"):
        if getattr(again, name) != getattr(config, name):
            raise _refused(f"the model's {name} would be {getattr(again, name)} instead of {getattr(config, name)}")


def _refused(reason: str) -> ModelError:
    return ModelError(f"llama.cpp cannot compute this model: {reason}.", "Export it as a Hugging Face folder.")


def _difference(ours: Any, theirs: Any) -> str:
    """What is not the same in two configurations, in words; nothing where both compute the same."""
    if ours == theirs:
        return ""
    if type(ours) is not type(theirs):
        return f"{type(theirs).__name__} would stand for {type(ours).__name__}"
    for one in fields(ours):
        mine, other = getattr(ours, one.name), getattr(theirs, one.name)
        if isinstance(mine, RopeConfig) and isinstance(other, RopeConfig):
            if not turn_alike(mine, other, ours.rotary_dim):
                return f"{one.name} would be {other} instead of {mine}"
        elif is_dataclass(mine) and is_dataclass(other):
            if different := _difference(mine, other):
                return different
        elif mine != other:
            return f"{one.name} would be {other} instead of {mine}"
    return ""
