"""A decoder for inference: the same modules, with every matrix product made independent of how many rows there are.

Matrices are packed once in the layout that oneDNN multiplies fastest; its kernels for packed matrices give a row the
same bits for nearly all numbers of rows, which plain products do not (see `same_bits`). Packing takes the memory of the
matrices a second time. Where it is not available, plain products are used in tiles.
"""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from athanor.base.errors import ModelError
from athanor.engine.cross_attention import PagedCrossAttention
from athanor.engine.same_bits import TILE, Compute, RowByRow, pad_rows, random_numbers
from athanor.models.attention import CrossAttention
from athanor.models.decoder import Decoder
from athanor.models.moe import Experts, Moe, Router
from athanor.models.stack import Stack


def packed(model: Decoder, dtype: torch.dtype | None) -> Decoder:
    """A decoder whose products are row by row, and which shares all other weights with `model`.

    dtype: of the products, by default that of the weights. The bias by distance is left to who attends
    (`relative_table`). Raises ModelError for what depends on the whole text.
    """
    view = _by_row(model, dtype)
    head = _PackedLinear(model.head_weight, view.head.bias, dtype)
    view.head.product = lambda states, embedding: head(states)  # type: ignore[method-assign]
    return view


def packed_encoder(model: Stack, dtype: torch.dtype | None) -> Stack:
    """The same of an encoder."""
    return _by_row(model, dtype)


M = TypeVar("M", bound=Stack)


def _by_row(model: M, dtype: torch.dtype | None) -> M:
    kept: dict[int, Any] = {id(parameter): parameter for parameter in model.parameters()}
    kept |= {id(module.watch): None for module in model.modules() if isinstance(module, Router) and module.watch}
    view = copy.deepcopy(model, kept)  # a training run that watches its experts is neither copied nor told
    view.eval()
    view.relative_bias = None
    for module in list(view.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                setattr(module, name, _PackedLinear(child.weight, child.bias, dtype))
            elif isinstance(child, Experts):
                setattr(module, name, _PackedExperts(child, dtype))
            elif isinstance(child, Router):
                setattr(module, name, _TiledRouter(child))
            elif isinstance(child, CrossAttention):
                setattr(module, name, PagedCrossAttention(child))
        if isinstance(module, Moe) and module.config.capacity is not None:
            raise ModelError("Experts with a capacity depend on all of the text, which a cache does not keep.")
    return view


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

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.multiply = multiplication(weight.detach(), None if bias is None else bias.detach(), dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.multiply(x.reshape(-1, x.shape[-1])).view(*x.shape[:-1], -1)


def multiplication(weight: Tensor, bias: Tensor | None, dtype: torch.dtype | None) -> Compute:
    """Rows (n, in) → (n, out) in the type of the products, `x @ weight.T + bias`."""
    dtype = dtype or weight.dtype
    weight = weight.to(dtype)
    bias = None if bias is None else bias.to(dtype)
    packs = _packs(weight)
    make = _packed_product if packs else _plain_product
    compute = make(weight, bias)

    def trial(rows: int) -> tuple[Compute, Tensor]:
        return compute, random_numbers(rows, weight.shape[1], dtype=dtype, device=weight.device)

    by_row = RowByRow(trial, ("linear", *weight.shape, dtype, weight.device.type, bias is not None, packs))
    return lambda rows: by_row(compute, rows.to(dtype))


def _plain_product(weight: Tensor, bias: Tensor | None) -> Compute:
    return lambda rows: F.linear(rows, weight, bias)


def _packs(weight: Tensor) -> bool:
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    if weight.dtype == torch.float16:
        return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
    return weight.dtype == torch.float32


def _packed_product(weight: Tensor, bias: Tensor | None) -> Compute:
    matrix = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), TILE)
    product: Any = torch.ops.mkldnn._linear_pointwise.default
    return lambda rows: product(rows, matrix, bias, "none", [], "")


class _PackedExperts(nn.Module):
    """Each expert over its own tokens, as `Experts` has it."""

    def __init__(self, experts: Experts, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.gate = None if experts.gate is None else [multiplication(w.detach(), None, dtype) for w in experts.gate]
        self.up = [multiplication(weight.detach(), None, dtype) for weight in experts.up]
        self.down = [multiplication(weight.detach(), None, dtype) for weight in experts.down]
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
