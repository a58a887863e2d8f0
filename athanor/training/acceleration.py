"""The fastest known way through a model's layers on the device that trains it, put around them from outside."""

from __future__ import annotations

import torch
from torch import nn

from athanor.training.compiling import compile_blocks
from athanor.training.flash import use_flash
from athanor.training.kernel_layers import use_kernels

_WAYS = ("project", "mix", "turn", "close", "read", "add", "forward")  # methods that are replaced in a layer


def accelerate(model: nn.Module, device: torch.device, compiled_rows: int | None = None) -> None:
    """Kernels in C on a CPU, flash attention on a GPU. compiled_rows: blocks are compiled for batches of so many rows;
    on a CPU without the kernels then, for a compiler fuses what they do and knows nothing of them.
    """
    for module in model.modules():
        for name in _WAYS:
            vars(module).pop(name, None)  # of another way before
    if compiled_rows is not None:
        compile_blocks(model, compiled_rows)
    elif device.type == "cpu":
        use_kernels(model)
    if device.type == "cuda":
        use_flash(model, compiled=compiled_rows is not None)
