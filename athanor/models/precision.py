"""The type that matrix products are computed in; weights and sums stay fp32."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(precision: str, device: torch.device | None = None) -> AbstractContextManager[Any]:
    """bf16 or fp16 for matrix products while weights stay fp32; nothing at all for fp32. device: the CPU by default."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast("cpu" if device is None else device.type, _TYPES[precision])
