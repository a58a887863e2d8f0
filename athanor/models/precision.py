"""The type that matrix products are computed in; weights and sums stay fp32."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor


def autocast(precision: str) -> AbstractContextManager[Any]:
    """bf16 for matrix products while weights stay fp32; nothing at all for fp32."""
    return torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else nullcontext()


def product_type(tensor: Tensor) -> torch.dtype:
    """What autocast would multiply `tensor` in."""
    kind = tensor.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else tensor.dtype


def for_products(x: Tensor) -> Tensor:
    """`x` in the type of the products it goes into, so that several of them share one copy: autocast would make one for
    each, and keep it for the backward pass.
    """
    return x.to(product_type(x))
