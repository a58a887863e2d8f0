"""Activation checkpointing (Chen et al. 2016): of a layer only its input is kept for the backward pass, which computes
the rest again. That costs a third of a step's FLOPs more, and changes no bit of the gradients.

It is put around the blocks from outside, so that the model's files know nothing of it.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from athanor.models.block import Block

Recompute = Literal["none", "blocks"]


def recompute_blocks(model: nn.Module) -> None:
    """From now on every `Block` of the model keeps its input alone, wherever gradients are taken."""
    for block in model.modules():
        if isinstance(block, Block):
            object.__setattr__(block, "forward", partial(_checkpointed, block))


def _checkpointed(block: Block, *given: Any, **more: Any) -> Any:
    forward = partial(type(block).forward, block)
    if not torch.is_grad_enabled():
        return forward(*given, **more)
    # No layer draws random numbers, so there is no state of a generator to bring back.
    return checkpoint(forward, *given, use_reentrant=False, preserve_rng_state=False, **more)
