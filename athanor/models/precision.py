"""The type that matrix products are computed in; weights and sums stay fp32."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn

from athanor.base.errors import ModelError

Precision = Literal["fp32", "bf16", "fp16"]
_MUCH_SLOWER = 10.0
# By identity and type of the weight, which is held so that no other gets its identity.
_casts: dict[tuple[int, torch.dtype], tuple[Tensor, Tensor]] | None = None
_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}

# MKL finds out at its first elementwise function what the processor has. When two threads come at once, one of them may
# get another, less exact implementation for this call; so one thread alone makes the first.
torch.ones(16).sqrt_()


def autocast(precision: str, device: torch.device | None = None) -> AbstractContextManager[Any]:
    """bf16 or fp16 for matrix products while weights stay fp32; nothing at all for fp32. device: the CPU by default."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast("cpu" if device is None else device.type, _TYPES[precision])


def check_precision(precision: str, device: torch.device) -> None:
    """Raises ModelError where the device has no products of this type, or such slow ones that it has no use for them;
    by trying some.
    """
    if precision == "fp32":
        return
    usable = device.type != "cuda" or precision == "fp16" or torch.cuda.is_bf16_supported(including_emulation=False)
    if usable:
        try:
            one = torch.ones(16, 16, device=device, requires_grad=True)
            with autocast(precision, device):
                (one @ one).float().sum().backward()
            if device.type == "cpu" and (slower := _slower(_TYPES[precision])) > _MUCH_SLOWER:
                raise ModelError(
                    f'precision = "{precision}" cannot be used: this CPU computes products in {precision} '
                    f"{slower:.0f} times slower than in fp32.",
                    'Take "fp32", "bf16", or "auto", which measures.',
                )
            return
        except (RuntimeError, NotImplementedError):
            pass
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"torch on {device.type}"
    raise ModelError(
        f'precision = "{precision}" cannot be used: {name} has no products in {precision}.',
        'Take "fp16" or "fp32".' if precision == "bf16" else 'Take "bf16" or "fp32".',
    )


def _slower(dtype: torch.dtype) -> float:
    """How many times longer a product takes than in fp32, on the CPU."""
    seconds = {torch.float32: torch.inf, dtype: torch.inf}
    for _ in range(3):
        for kind in seconds:
            one = torch.ones(256, 256, dtype=kind)
            began = time.perf_counter()
            one @ one
            seconds[kind] = min(seconds[kind], time.perf_counter() - began)
    return seconds[dtype] / seconds[torch.float32]


def product_type(tensor: Tensor) -> torch.dtype:
    """What autocast would multiply `tensor` in."""
    kind = tensor.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else tensor.dtype


@contextmanager
def casting_once() -> Iterator[None]:
    """Within it weights do not change, and each is cast once by `cast_weight`."""
    global _casts
    _casts = {}
    try:
        yield
    finally:
        _casts = None


def cast_weight(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Without a gradient of its own."""
    if _casts is None or weight.dtype == dtype or not isinstance(weight, nn.Parameter):
        return weight.detach().to(dtype)
    key = id(weight), dtype
    if key not in _casts:
        _casts[key] = weight, weight.detach().to(dtype)
    return _casts[key][1]


def for_products(x: Tensor) -> Tensor:
    """`x` in the type of the products it goes into, so that several of them share one copy: autocast would make one for
    each, and keep it for the backward pass.
    """
    return x.to(product_type(x))
