"""A decoder for inference: the same modules, with every matrix product made independent of how many rows there are."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from athanor.base.errors import ModelError
from athanor.engine.cross_attention import PagedCrossAttention
from athanor.engine.products import Quantized, multiplication
from athanor.engine.same_bits import TILE, pad_rows
from athanor.models.attention import Attention, CrossAttention
from athanor.models.decoder import Decoder
from athanor.models.mlp import Mlp
from athanor.models.moe import Experts, Moe, Router
from athanor.models.stack import Stack


def packed(model: Decoder, dtype: torch.dtype | None, form: Quantized | None = None) -> Decoder:
    """A decoder whose products are row by row, and which shares all other weights with `model`.

    dtype: of the products, by default that of the weights. form: of the matrices; the head's has 8 bits at least. The
    bias by distance is left to who attends (`relative_table`). Raises ModelError for what depends on the whole text.
    """
    view = _by_row(model, dtype, form)
    head = _PackedLinear(model.head_weight, view.head.bias, dtype, "int8" if form == "int4" else form)
    view.head.product = lambda states, embedding: head(states)  # type: ignore[method-assign]
    return view


def packed_encoder(model: Stack, dtype: torch.dtype | None, form: Quantized | None = None) -> Stack:
    """The same of an encoder."""
    return _by_row(model, dtype, form)


M = TypeVar("M", bound=Stack)


def _by_row(model: M, dtype: torch.dtype | None, form: Quantized | None) -> M:
    kept: dict[int, Any] = {id(parameter): parameter for parameter in model.parameters()}
    kept |= {id(module.watch): None for module in model.modules() if isinstance(module, Router) and module.watch}
    view = copy.deepcopy(model, kept)  # a training run that watches its experts is neither copied nor told
    view.eval()
    view.relative_bias = None
    for module in list(view.modules()):
        if isinstance(module, Attention):
            _join(module, ("query", "key", "value"), dtype, form)
        elif isinstance(module, Mlp) and module.gate is not None:
            _join(module, ("gate", "up"), dtype, form)
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                setattr(module, name, _PackedLinear(child.weight, child.bias, dtype, form))
            elif isinstance(child, Experts):
                setattr(module, name, _PackedExperts(child, dtype, form))
            elif isinstance(child, Router):
                setattr(module, name, _TiledRouter(child))
            elif isinstance(child, CrossAttention):
                setattr(module, name, PagedCrossAttention(child))
        if isinstance(module, Moe) and module.config.capacity is not None:
            raise ModelError("Experts with a capacity depend on all of the text, which a cache does not keep.")
    return view


def _join(module: Attention | Mlp, names: Sequence[str], dtype: torch.dtype | None, form: Quantized | None) -> None:
    """Makes one product of those that have the same input."""
    layers: list[nn.Linear] = [getattr(module, name) for name in names]
    biases = [layer.bias.detach() for layer in layers if layer.bias is not None]
    weight = torch.cat([layer.weight.detach() for layer in layers])
    joint = _PackedLinear(weight, torch.cat(biases) if biases else None, dtype, form)
    sizes = [layer.out_features for layer in layers]
    module.project = lambda x: joint(x).split(sizes, -1)  # type: ignore[method-assign]
    for name in names:
        setattr(module, name, nn.Identity())


@torch.inference_mode()
def relative_table(model: Decoder) -> Tensor | None:
    """T5's bias of the scores, (distances, heads) fp32: looked up, for computed bucket by bucket a distance could fall
    into another one in other company.
    """
    if model.relative_bias is None:
        return None
    weight = model.relative_bias.weight
    distances = torch.arange(model.config.max_seq_len, device=weight.device)
    table: Tensor = model.relative_bias(distances[None, None, None]).float()[0, :, 0].T.contiguous()
    return table


class _PackedLinear(nn.Module):
    """`nn.Linear` in the type of the products."""

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype | None, form: Quantized | None) -> None:
        super().__init__()
        self.multiply = multiplication(weight, bias, dtype, form)

    def forward(self, x: Tensor) -> Tensor:
        return self.multiply(x.reshape(-1, x.shape[-1])).view(*x.shape[:-1], -1)


class _PackedExperts(nn.Module):
    """Each expert over its own tokens, as `Experts` has it."""

    def __init__(self, experts: Experts, dtype: torch.dtype | None, form: Quantized | None) -> None:
        super().__init__()
        pack = partial(multiplication, bias=None, dtype=dtype, form=form)
        self.gate = None if experts.gate is None else [pack(weight) for weight in experts.gate]
        self.up, self.down = [pack(weight) for weight in experts.up], [pack(weight) for weight in experts.down]
        self.activation = experts.activation

    def forward(self, x: Tensor, counts: Tensor) -> Tensor:
        parts = x.split(counts.tolist())
        return torch.cat([self._expert(i, part) for i, part in enumerate(parts) if len(part)])

    def _expert(self, number: int, x: Tensor) -> Tensor:
        n = len(x)
        x = pad_rows(x, -(-n // TILE) * TILE)  # whole tiles for the activation too
        up = self.up[number](x)
        inner = self.activation(up) if self.gate is None else self.activation(self.gate[number](x)) * up
        return self.down[number](inner)[:n]


class _TiledRouter(nn.Module):
    """A router that is shown whole tiles."""

    def __init__(self, router: Router) -> None:
        super().__init__()
        self.router = router

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        found = [self.router(pad_rows(part, TILE)) for part in x.split(TILE)]
        chosen, weights = (torch.cat(parts)[: len(x)] for parts in zip(*found, strict=True))
        return chosen, weights
