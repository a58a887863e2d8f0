"""torch.compile around each block of a model: its pointwise work is fused, its matrix products stay what they are.

Blocks are compiled, not the model: those that are alike share their code, so that compiling takes as long for forty as
for two. What is measured or decoded goes through the plain forward pass, since its shapes change with each call.
"""

from __future__ import annotations

import os
import shutil
from functools import partial
from importlib.util import find_spec
from types import MethodType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from athanor.models.block import Block

Compile = Literal["none", "blocks"]


def has_compiler(device: torch.device) -> bool:
    """Whether torch finds what it compiles with: a C++ compiler, and Triton for a GPU."""
    command = os.environ.get("CXX", "").split()
    host = any(shutil.which(name) for name in (*command[:1], "g++", "clang++"))
    return host and (device.type == "cpu" or find_spec("triton") is not None)


def compile_blocks(model: nn.Module, rows: int) -> None:
    """From now on batches of `rows` rows go through compiled blocks where gradients are taken; the first compiles.
    What was compiled for other models is forgotten: torch keeps only a few variants of one function.
    """
    torch.compiler.reset()
    for block in model.modules():
        if isinstance(block, Block):
            compiled = torch.compile(MethodType(type(block).forward, block), dynamic=False)
            object.__setattr__(block, "forward", partial(_forward, compiled, block, rows))


def _forward(compiled: Any, block: Block, rows: int, x: Tensor, *given: Any, **more: Any) -> Any:
    if torch.is_grad_enabled() and len(x) == rows:
        return compiled(x, *given, **more)
    return type(block).forward(block, x, *given, **more)
