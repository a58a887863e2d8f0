"""What each parameter of a model is, decided by the module that owns it and never by its name.

Optimizers treat the kinds differently: a matrix between hidden states has a spectrum worth levelling, a row of a table
is touched only by its own token, a gain has a size of its own to be relative to, and a bias begins at zero.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from torch import Tensor, nn

from athanor.models.block import Norms
from athanor.models.disentangled import DistanceTable
from athanor.models.embedding import Embedding
from athanor.models.encoder import Encoder
from athanor.models.head import Head
from athanor.models.moe import Experts, Router
from athanor.models.norm import HeadNorm, LayerNorm, RMSNorm
from athanor.models.positions import RelativeBiasTable

Part = TypeVar("Part", bound=nn.Module)
Item = TypeVar("Item")
Role = Literal["matrix", "table", "head", "router", "gain", "bias"]
_SLICE = 1 << 23


@dataclass(frozen=True)
class Place:
    """A parameter in its model.

    matrices: (how many, rows, columns) a "matrix" parameter is to be seen as. scale: what the rows of a table are
    multiplied by when they are looked up. offset: what is added to a gain before it multiplies. from_zero: a gain that
    starts at zero, so that its part of the layer begins silent.
    """

    name: str
    parameter: Tensor
    role: Role
    matrices: tuple[int, int, int] = (0, 0, 0)
    scale: float = 1.0
    offset: float = 0.0
    from_zero: bool = False

    @property
    def inputs(self) -> int:
        """How many numbers an output of it is a sum over."""
        return self.matrices[2] or self.parameter.shape[-1]


def places(model: nn.Module) -> list[Place]:
    """Every parameter once, in the order of `named_parameters`. Raises TypeError for a module that has no rule here."""
    scales, silent, outputs = _surroundings(model)
    found: dict[int, Place] = {}
    for path, module in model.named_modules():
        for kind, parameter in module.named_parameters(recurse=False):
            if id(parameter) in found:
                continue
            name = f"{path}.{kind}" if path else kind
            role = _role(module, kind, outputs)
            found[id(parameter)] = Place(
                name,
                parameter,
                role,
                _matrices(module, parameter) if role == "matrix" else (0, 0, 0),
                scales.get(id(module), 1.0),
                float(getattr(module, "offset", 0.0)),
                id(module) in silent,
            )
    return list(found.values())


def _role(module: nn.Module, kind: str, outputs: set[int]) -> Role:
    # T5's bias is one number a head, added to scores and zero at first: a table in form, a bias in what it does.
    if kind == "bias" or isinstance(module, RelativeBiasTable):
        return "bias"
    if isinstance(module, nn.Embedding | DistanceTable):
        return "table"
    if isinstance(module, RMSNorm | LayerNorm | HeadNorm):
        return "gain"
    if isinstance(module, Router):
        return "router"
    if isinstance(module, Head) or id(module) in outputs:
        return "head"
    if isinstance(module, nn.Linear | nn.Conv1d | Experts):
        return "matrix"
    raise TypeError(f"{type(module).__name__}.{kind} has no role for an optimizer")


def _matrices(module: nn.Module, parameter: Tensor) -> tuple[int, int, int]:
    if isinstance(module, nn.Conv1d):
        rows = parameter.shape[0] // module.groups
        return module.groups, rows, parameter[0].numel()
    return (parameter.shape[:-2].numel(), *parameter.shape[-2:])


def _surroundings(model: nn.Module) -> tuple[dict[int, float], set[int], set[int]]:
    """What a module does not know of itself, by its id: the scale of a table, whether a norm starts at zero, whether a
    matrix gives a model's outputs.
    """
    scales: dict[int, float] = {}
    for embedding in _all(model, Embedding):
        if "tokens" in dict(embedding.named_children()):  # else they are another's
            scales[id(embedding.tokens)] = embedding.config.scale
    silent = {id(norms.output) for norms in _all(model, Norms)}
    outputs = {id(head) for encoder in _all(model, Encoder) for head in (encoder.next_sentence, encoder.classifier)}
    return scales, silent, outputs


def slices(items: Sequence[Item], sizes: Sequence[int]) -> Iterator[list[Item]]:
    """Neighbouring items of together at most 8 M numbers, or one that is larger: what an optimizer steps at a time, so
    that its temporaries (32 MB each) do not grow with the model.
    """
    part: list[Item] = []
    total = 0
    for item, size in zip(items, sizes, strict=True):
        if part and total + size > _SLICE:
            yield part
            part, total = [], 0
        part.append(item)
        total += size
    if part:
        yield part


def _all(model: nn.Module, kind: type[Part]) -> Iterator[Part]:
    return (module for module in model.modules() if isinstance(module, kind))
