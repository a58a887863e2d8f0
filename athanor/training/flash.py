"""Flash attention on a GPU, document by document: torch's own kernel for sequences of several lengths.

Attention by masks computes all pairs of a row, and in a slower kernel. As with the kernels in C, a model's file knows
nothing of it: `use_flash` puts it around attention layers from outside, where gradients are taken.
"""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from athanor.models.attention import Attention
from athanor.models.where import Where

_TYPES = (torch.bfloat16, torch.float16)
_OLDEST = (8, 0)  # the compute capability that the kernel asks for: Ampere
_WIDEST = 192  # values of a head, whose gradient every such card can take


def use_flash(model: nn.Module, compiled: bool = False) -> None:
    """From now on the model's attention goes document by document where it is computed in 16 bits. compiled: its blocks
    go through a compiler, which then leaves this alone.
    """
    for module in model.modules():
        if type(module) is Attention and _takes(module):
            way = partial(_mix, module)
            object.__setattr__(module, "mix", torch.compiler.disable(way) if compiled else way)


def _takes(module: Attention) -> bool:
    head_dim = module.config.head_dim
    return module.config.soft_cap is None and head_dim % 8 == 0 and head_dim <= _WIDEST


@cache
def _has_kernel(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= _OLDEST


def _mix(module: Attention, queries: Tensor, keys: Tensor, values: Tensor, where: Where) -> Tensor:
    """As `Attention.mix`: (batch, heads, time, head_dim) each."""
    own = where.positions.shape == (len(queries), queries.shape[2])  # not one row for all
    serves = own and torch.is_grad_enabled() and queries.dtype in _TYPES and _has_kernel(queries.device)
    bounds = where.bounds() if serves else None
    if bounds is None:
        return Attention.mix(module, queries, keys, values, where)
    from torch.nn.attention.varlen import varlen_attn

    window, batch, (edges, longest) = module.config.window, len(queries), bounds
    reach = -1 if window is None else window - 1 if where.causal else window // 2
    flat_queries, flat_keys, flat_values = (x.transpose(1, 2).flatten(0, 1) for x in (queries, keys, values))
    mixed: Any = varlen_attn(
        flat_queries, flat_keys, flat_values, edges, edges, longest, longest, scale=module.scale,
        window_size=(reach, 0 if where.causal else reach), enable_gqa=queries.shape[1] > keys.shape[1],
    )  # fmt: skip
    return mixed.unflatten(0, (batch, -1)).transpose(1, 2)
