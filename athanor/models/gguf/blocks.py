"""The quantised blocks of a GGUF file by the names of our parameters, for an engine that computes with them as they
are.

What the rules between the two names do to these matrices concerns whole rows, so it is done to rows of bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from athanor.base.errors import ModelError
from athanor.models.decoder import Decoder
from athanor.models.families.weights import applicable
from athanor.models.gguf.architectures import architecture_of
from athanor.models.gguf.header import Header
from athanor.models.gguf.reader import GgufFile

TAKEN = ("Q8_0", "Q4_0", "Q4_1")


@dataclass(frozen=True)
class Blocks:
    """One matrix. form: its number format, one of `TAKEN`. data: (rows, bytes of a row) uint8."""

    form: str
    data: Tensor


def read_blocks(path: Path | str, model: Decoder) -> dict[str, Blocks]:
    """The matrices of the file that are in a format of `TAKEN`, by the names of `model`'s parameters; `model` was read
    from the same file. Raises ModelError for a file that cannot be read.
    """
    file = GgufFile(path)
    found: dict[str, Blocks] = {}
    naming = architecture_of(Header(file)).naming(model.config, file.tensors)
    sizes = {name: parameter.shape for name, parameter in model.named_parameters()}
    for rule in applicable(naming.rules, sizes, model.config.n_layers):
        forms = {file.tensors[name].format.name for name in rule.theirs if name in file.tensors}
        if len(forms) != 1 or (form := forms.pop()) not in TAKEN or len(sizes[rule.ours[0]]) != 2:
            continue
        try:
            parts = rule.read([file.read_rows(name) for name in rule.theirs])
        except RuntimeError as error:
            raise ModelError(f"{path}: {rule.theirs[0]} has a shape that does not fit ({error}).") from None
        found |= {name: Blocks(form, part.contiguous()) for name, part in zip(rule.ours, parts, strict=True)}
    return found
