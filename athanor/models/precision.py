"""The type that matrix products are computed in; weights and sums stay fp32."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(precision: str, device: torch.device | None = None) -> AbstractContextManager[Any]:
    """bf16 or fp16 for matrix products while weights stay fp32; nothing at all for fp32. device: the CPU by default."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast("cpu" if device is None else device.type, _TYPES[precision])


def product_type(tensor: Tensor) -> torch.dtype:
    """What autocast would multiply `tensor` in."""
    kind = tensor.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else tensor.dtype


def for_products(x: Tensor) -> Tensor:
    """`x` in the type of the products it goes into, so that several of them share one copy: autocast would make one for
    each, and keep it for the backward pass.
    """
    return x.to(product_type(x))
