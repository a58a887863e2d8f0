"""How another project's weights become ours and back: rules, each a few names here and there and what happens between.

In names "*" stands for the number of a layer. A rule whose weights the model does not have is passed over, so one list
serves with and without biases, tied and untied, dense and expert layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from athanor.base.errors import ModelError

Tensors = list[Tensor]


def _same(tensors: Tensors) -> Tensors:
    return tensors


@dataclass(frozen=True)
class Rule:
    """ours, theirs: parameter names. read: their tensors → ours; write: ours → theirs."""

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    read: Callable[[Tensors], Tensors] = _same
    write: Callable[[Tensors], Tensors] = _same

    def at(self, layer: int) -> Rule:
        def numbered(names: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(name.replace("*", str(layer)) for name in names)

        return Rule(numbered(self.ours), numbered(self.theirs), self.read, self.write)

    @property
    def is_layered(self) -> bool:
        return "*" in self.ours[0]


@dataclass(frozen=True)
class Naming:
    """How the weights of one model are called on disk. owner: who calls them so, for messages. prefix: what all names
    begin with but for a head's, and what files of the bare model lack. unused: patterns of names that are no weights of
    ours.
    """

    owner: str
    rules: list[Rule]
    prefix: str = ""
    unused: tuple[str, ...] = ()


def same(ours: str, theirs: str) -> list[Rule]:
    """A module's weight and bias, as they are."""
    return [Rule((f"{ours}.{kind}",), (f"{theirs}.{kind}",)) for kind in ("weight", "bias")]


def parameter(ours: str, theirs: str) -> list[Rule]:
    """One parameter, as it is."""
    return [Rule((ours,), (theirs,))]


def transposed(ours: str, theirs: str) -> list[Rule]:
    """A module whose weight stands the other way round on disk (GPT-2's Conv1D)."""

    def turn(tensors: Tensors) -> Tensors:
        return [tensor.mT.contiguous() for tensor in tensors]

    return [Rule((f"{ours}.weight",), (f"{theirs}.weight",), turn, turn), Rule((f"{ours}.bias",), (f"{theirs}.bias",))]


def fused(ours: Sequence[str], theirs: str, rows: Sequence[int], *, transpose: bool = False) -> list[Rule]:
    """Several modules one after the other in one on disk. rows: outputs of each."""

    def rule(kind: str) -> Rule:
        turned = transpose and kind == "weight"

        def read(tensors: Tensors) -> Tensors:
            return [part.contiguous() for part in (tensors[0].mT if turned else tensors[0]).split(list(rows))]

        def write(tensors: Tensors) -> Tensors:
            whole = torch.cat(tensors)
            return [whole.mT.contiguous() if turned else whole]

        return Rule(tuple(f"{name}.{kind}" for name in ours), (f"{theirs}.{kind}",), read, write)

    return [rule("weight"), rule("bias")]


def fused_by_group(ours: Sequence[str], theirs: str, groups: int, shares: Sequence[int], dim: int) -> list[Rule]:
    """Queries, keys and values in one module on disk, group by group of heads (GPT-NeoX, BLOOM, Falcon).

    shares: heads of each of `ours` in a group. dim: of a head.
    """

    def read(tensors: Tensors) -> Tensors:
        grouped = tensors[0].unflatten(0, (groups, sum(shares), dim))
        return [part.flatten(0, 2).contiguous() for part in grouped.split(list(shares), dim=1)]

    def write(tensors: Tensors) -> Tensors:
        parts = [t.unflatten(0, (groups, share, dim)) for t, share in zip(tensors, shares, strict=True)]
        return [torch.cat(parts, dim=1).flatten(0, 2)]

    return [
        Rule(tuple(f"{name}.{kind}" for name in ours), (f"{theirs}.{kind}",), read, write)
        for kind in ("weight", "bias")
    ]


def stacked(ours: str, theirs: Sequence[str]) -> list[Rule]:
    """One tensor here that is several on disk: the experts of a layer."""

    def read(tensors: Tensors) -> Tensors:
        return [torch.stack(tensors)]

    def write(tensors: Tensors) -> Tensors:
        return [tensor.contiguous() for tensor in tensors[0].unbind()]

    return [Rule((ours,), tuple(theirs), read, write)]


def applicable(rules: Iterable[Rule], names: Mapping[str, object], n_layers: int) -> Iterator[Rule]:
    """The rules for the parameters in `names`, layer by layer. Raises ModelError for a parameter that no rule makes."""
    missing = set(names)
    for rule in rules:
        for one in (rule.at(i) for i in range(n_layers)) if rule.is_layered else (rule,):
            present = [name in missing for name in one.ours]
            if all(present):
                missing -= set(one.ours)
                yield one
    if missing:
        raise ModelError(f"This family has no weight for {min(missing)}.")
