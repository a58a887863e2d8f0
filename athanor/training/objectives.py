"""Objectives: (model, batch) → Loss. The head and its cross-entropy are one step that never holds all logits at once.

Cross-entropy against the head is computed in chunks of rows, and its gradient with it (as in Liger Kernel, Hsu et al.
2024), so peak memory is one chunk of logits instead of batch × vocabulary, and places without a label cost nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from athanor.models.decoder import Decoder
from athanor.training.batches import IGNORED, Batch

_CHUNK = 512  # rows of logits at a time: 512 × 8192 fp32 is 16 MB


@dataclass(frozen=True)
class Loss:
    """sum: summed loss in nats, differentiable; count: number of targets it was summed over; metrics: further sums over
    them.
    """

    sum: Tensor
    count: int
    metrics: Mapping[str, float] = field(default_factory=dict)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, hidden: Tensor, weight: Tensor, targets: Tensor, differentiable: bool) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        hidden_gradient = torch.empty_like(hidden) if differentiable else None
        weight_gradient = torch.zeros_like(weight, dtype=torch.float32) if differentiable else None
        dtype = _compute_dtype(hidden)  # autocast does not reach products with an output given
        matrix = weight.to(dtype)
        for start in range(0, len(hidden), _CHUNK):
            rows, labels = hidden[start : start + _CHUNK].to(dtype), targets[start : start + _CHUNK, None]
            logprobs = torch.log_softmax((rows @ matrix.T).float(), dim=-1)
            wanted = logprobs.gather(1, labels)
            total -= wanted.sum(dtype=torch.float64).cpu()
            if hidden_gradient is None or weight_gradient is None:
                continue
            gradient = logprobs.exp_().scatter_add_(1, labels, torch.full_like(wanted, -1.0)).to(dtype)
            if dtype == torch.float32:
                torch.mm(gradient, matrix, out=hidden_gradient[start : start + _CHUNK])
                weight_gradient.addmm_(gradient.T, rows)
            else:
                hidden_gradient[start : start + _CHUNK] = gradient @ matrix
                weight_gradient += gradient.T @ rows
        if hidden_gradient is not None and weight_gradient is not None:
            context.save_for_backward(hidden_gradient, weight_gradient.to(weight.dtype))
        return total.to(torch.float32)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        hidden_gradient, weight_gradient = context.saved_tensors
        return hidden_gradient * gradients[0].to(hidden_gradient.dtype), weight_gradient * gradients[0], None, None


def _compute_dtype(tensor: Tensor) -> torch.dtype:
    """What autocast would multiply `tensor` in."""
    kind = tensor.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else tensor.dtype


def linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Summed −log softmax(hidden · weightᵀ)[targets] in nats.

    hidden: (n, d_model); weight: (vocabulary, d_model); targets: (n,) int64, all real labels.
    """
    return _LinearCrossEntropy.apply(hidden, weight, targets, torch.is_grad_enabled())


def next_token(model: Decoder, batch: Batch) -> Loss:
    """The loss of pre-training and of supervised fine-tuning alike: what differs is which targets a batch has."""
    hidden = model.hidden(batch.tokens, positions=batch.positions, document_ids=batch.document_ids)
    labelled = batch.targets != IGNORED
    hidden, targets = hidden[labelled], batch.targets[labelled]
    if not model.head.is_plain:
        return Loss(F.cross_entropy(model.logits(hidden).float(), targets, reduction="sum"), len(targets))
    return Loss(linear_cross_entropy(hidden, model.head_weight, targets), len(targets))
