"""Matrix products for inference, each independent of how many rows there are.

Matrices are packed once in the layout that oneDNN multiplies fastest; its kernels for packed matrices give a row the
same bits for nearly all numbers of rows, which plain products do not (see `same_bits`). Packing takes the memory of the
matrices a second time. Where it is not available, plain products are used in tiles. Matrices of 8 or 4 bits go through
torch's own products of those, which take rows in bf16.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from athanor.engine.same_bits import TILE, Compute, RowByRow, cancelling

Quantized = Literal["int8", "int4"]
GROUP = 32  # columns with a scale of their own, in 4 bits


def multiplication(
    weight: Tensor, bias: Tensor | None, dtype: torch.dtype | None, form: Quantized | None = None
) -> Compute:
    """Rows (n, in) → (n, out), `x @ weight.T + bias`, in the type of the products, by default that of the weights.

    form: of the weights; those whose shape torch's products do not take keep their type.
    """
    if form == "int4" and (weight.shape[0] % 16 or weight.shape[1] % GROUP):
        form = "int8"
    if form is not None and not weight.shape[1] % GROUP:
        return _quantized(weight.detach(), bias, form)
    dtype = dtype or weight.dtype
    weight = weight.detach().to(dtype)
    bias = None if bias is None else bias.detach().to(dtype)
    packs = _packs(weight)
    make = _packed_product if packs else _plain_product
    none = None if bias is None else torch.zeros_like(bias)
    by_row = _by_row(make(weight, bias), lambda other: make(other, none), weight, dtype, bias is not None, packs)
    return lambda rows: by_row(rows.to(dtype))


def _by_row(
    compute: Compute, make: Callable[[Tensor], Compute], weight: Tensor, dtype: torch.dtype, *kernel: object
) -> Callable[[Tensor], Tensor]:
    """compute: what `make` made of `weight`. dtype: of the rows. kernel: what else tells it from others."""

    def trial(rows: int) -> tuple[Compute, Tensor]:
        n_out, n_in = weight.shape
        matrix, found = cancelling(rows, n_out, n_in, dtype, weight.device)
        return make(matrix), found

    by_row = RowByRow(trial, ("linear", *weight.shape, dtype, weight.device.type, *kernel))
    return lambda rows: by_row(compute, rows)


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


def _quantized(weight: Tensor, bias: Tensor | None, form: Quantized) -> Compute:
    make = _int8_product if form == "int8" else _int4_product
    by_row = _by_row(make(weight), make, weight, torch.bfloat16, form)
    if bias is None:
        return lambda rows: by_row(rows.bfloat16()).to(rows.dtype)
    added = bias.detach()
    return lambda rows: by_row(rows.bfloat16()).to(rows.dtype) + added


def _int8_product(weight: Tensor) -> Compute:
    """The largest of a row becomes 127."""
    scales = (weight.float().abs().amax(1) / 127).bfloat16()
    codes = (weight.float() / _divisor(scales)[:, None]).round_().clamp_(-127, 127).to(torch.int8)
    return lambda rows: torch._weight_int8pack_mm(rows, codes, scales)


def _int4_product(weight: Tensor) -> Compute:
    """Of each group, the number of largest size becomes −8."""
    groups = weight.float().unflatten(1, (-1, GROUP))
    scales = (groups.gather(2, groups.abs().argmax(2, keepdim=True)) / -8).bfloat16()
    codes = (groups / _divisor(scales)).round_().clamp_(-8, 7).add_(8).to(torch.int32)
    matrix = torch._convert_weight_to_int4pack_for_cpu(codes.flatten(1), 1)
    shifted = torch.cat([scales, torch.zeros_like(scales)], 2).transpose(0, 1).contiguous()
    return lambda rows: torch._weight_int4pack_mm_for_cpu(rows, matrix, GROUP, shifted)


def _divisor(scales: Tensor) -> Tensor:
    return torch.where(scales != 0, scales, 1).float()
