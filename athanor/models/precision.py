"""The type that matrix products are computed in; weights and sums stay fp32."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch


def autocast(precision: str) -> AbstractContextManager[Any]:
    """bf16 for matrix products while weights stay fp32; nothing at all for fp32."""
    return torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else nullcontext()
