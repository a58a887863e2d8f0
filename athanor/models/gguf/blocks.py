"""The quantised blocks of a GGUF file by the names of our parameters, for an engine that computes with them: as they
are, or, in formats that it does not know, as blocks of one that it does.

What the rules between the two names do to these matrices concerns whole rows, so it is done to rows of bytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from athanor.base.errors import ModelError
from athanor.models.decoder import Decoder
from athanor.models.families.weights import applicable
from athanor.models.gguf.architectures import architecture_of
from athanor.models.gguf.block_conversion import TARGETS, Loss, convert_blocks
from athanor.models.gguf.header import Header
from athanor.models.gguf.reader import GgufFile

TAKEN = ("Q8_0", "Q4_0", "Q4_1")


@dataclass(frozen=True)
class Blocks:
    """One matrix. form: its number format, one of `TAKEN`. data: (rows, bytes of a row) uint8. source: its format in
    the file, and loss: what the way from there cost, where it was another.
    """

    form: str
    data: Tensor
    source: str
    loss: Loss | None = None


@dataclass(frozen=True)
class Conversion:
    """What became of the matrices of one format. error: length of the weights' differences over the weights' own."""

    source: str
    target: str
    matrices: int
    error: float

    def __str__(self) -> str:
        return f"{self.matrices} of {self.source} as {self.target} (relative error {self.error:.2g})"


def conversions(blocks: Iterable[Blocks]) -> tuple[Conversion, ...]:
    """By format; those that were not converted are left out."""
    found: dict[str, list[Loss]] = {}
    for each in blocks:
        if each.loss is not None:
            found.setdefault(each.source, []).append(each.loss)
    return tuple(
        Conversion(source, TARGETS[source], len(losses), _relative(losses)) for source, losses in sorted(found.items())
    )


def _relative(losses: list[Loss]) -> float:
    size = sum(loss.size for loss in losses)
    return math.sqrt(sum(loss.error for loss in losses) / size) if size else 0.0


def read_blocks(path: Path | str, model: Decoder) -> dict[str, Blocks]:
    """The matrices of the file that are in blocks, by the names of `model`'s parameters; `model` was read from the same
    file. Raises ModelError for a file that cannot be read.
    """
    file = GgufFile(path)
    found: dict[str, Blocks] = {}
    naming = architecture_of(Header(file)).naming(model.config, file.tensors)
    sizes = {name: parameter.shape for name, parameter in model.named_parameters()}
    for rule in applicable(naming.rules, sizes, model.config.n_layers):
        forms = {file.tensors[name].format.name for name in rule.theirs if name in file.tensors}
        if len(forms) != 1 or (form := forms.pop()) not in (*TAKEN, *TARGETS) or len(sizes[rule.ours[0]]) != 2:
            continue
        try:
            parts = rule.read([file.read_rows(name) for name in rule.theirs])
        except RuntimeError as error:
            raise ModelError(f"{path}: {rule.theirs[0]} has a shape that does not fit ({error}).") from None
        found |= {name: _blocks(form, part.contiguous()) for name, part in zip(rule.ours, parts, strict=True)}
    return found


def _blocks(form: str, data: Tensor) -> Blocks:
    if form in TAKEN:
        return Blocks(form, data, form)
    made, loss = convert_blocks(data, form)
    return Blocks(TARGETS[form], made, form, loss)
