"""The head and what is asked of its logits as one step, which never holds all logits at once.

Cross-entropy against the head is computed in chunks of rows, and its gradient with it (as in Liger Kernel, Hsu et al.
2024), so peak memory is one chunk of logits instead of batch × vocabulary, and places without a label cost nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from athanor.models.embedding import Embedding
from athanor.models.head import Head
from athanor.models.precision import cast_weight, product_type
from athanor.training.kernels import training_kernels

_CHUNK = 512  # rows of logits at a time, at least,
# and so many logits: the fewer products there are, the less often the head's gradient is walked over
_LOGITS = defaultdict(lambda: 1 << 24, cuda=1 << 27)
_KEPT = 1 << 26  # logits that may stand until the backward pass, where each row's value is wanted: 256 MB
# logits that softmax takes at a time: 512 × 8192, so that a large vocabulary needs no second chunk
_SOFTMAX = defaultdict(lambda: 1 << 22, cuda=1 << 27)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        context: Any, hidden: Tensor, weight: Tensor, targets: Tensor, shares: Tensor | None, differentiable: bool
    ) -> Tensor:
        total = torch.zeros((), dtype=torch.float64, device=hidden.device)
        hidden_gradient = torch.empty_like(hidden) if differentiable else None
        weight_gradient = torch.zeros_like(weight, dtype=torch.float32) if differentiable else None
        dtype = product_type(hidden)  # autocast does not reach products with an output given
        matrix = cast_weight(weight, dtype)
        size = min(max(_CHUNK, _LOGITS[hidden.device.type] // len(weight)), len(hidden))
        logits = matrix.new_empty(size, len(weight))
        for start in range(0, len(hidden), max(1, size)):
            chunk = slice(start, start + size)
            rows = hidden[chunk].to(dtype)
            found = torch.mm(rows, matrix.T, out=logits[: len(rows)])
            losses, gradient = _differentiate(found, targets[chunk], None if shares is None else shares[chunk])
            total += losses.sum(dtype=torch.float64)
            if hidden_gradient is None or weight_gradient is None:
                continue
            if dtype == torch.float32:
                torch.mm(gradient, matrix, out=hidden_gradient[chunk])
                weight_gradient.addmm_(gradient.T, rows)
            else:
                hidden_gradient[chunk] = gradient @ matrix
                _add_product(weight_gradient, gradient, rows)
        if hidden_gradient is not None and weight_gradient is not None:
            context.save_for_backward(hidden_gradient, weight_gradient.to(weight.dtype))
        return total.to(torch.float32)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        # In place, since a copy of the head's gradient would stand beside all activations. That ends its use: torch
        # refuses a second backward pass.
        hidden_gradient, weight_gradient = context.saved_tensors
        hidden_gradient.mul_(gradients[0].to(hidden_gradient.dtype))
        return hidden_gradient, weight_gradient.mul_(gradients[0]), None, None, None


def _add_product(total: Tensor, gradient: Tensor, rows: Tensor) -> None:
    """total (vocabulary, d_model) fp32 += gradientᵀ · rows, of fewer bits."""
    kernels = training_kernels()
    if kernels is None or not kernels.takes(gradient, rows):
        total += gradient.T @ rows
    else:  # the narrower operand is turned around, and what comes out
        kernels.transpose(kernels.transpose(rows) @ gradient, added_to=total)


def _differentiate(logits: Tensor, labels: Tensor, shares: Tensor | None) -> tuple[Tensor, Tensor]:
    """The cross-entropies of logits (n, vocabulary) in fp32, and their gradient, perhaps in their place."""
    kernels = training_kernels()
    if kernels is not None and kernels.takes(logits):
        return kernels.differentiate(logits, labels, shares), logits
    size = max(1, _SOFTMAX[logits.device.type] // logits.shape[1])
    if len(logits) > size:
        losses = []
        for start in range(0, len(logits), size):
            part = slice(start, start + size)
            loss, gradient = _differentiate(logits[part], labels[part], None if shares is None else shares[part])
            losses.append(loss)
            logits[part] = gradient
        return torch.cat(losses), logits
    logprobs = torch.log_softmax(logits, dim=-1, dtype=torch.float32)
    wanted = logprobs.gather(1, labels)
    shares = torch.ones_like(wanted) if shares is None else shares
    gradient = logprobs.exp_().scatter_add_(1, labels, -shares)
    return -(wanted * shares).sum(1), gradient.to(logits.dtype)


def linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, shares: Tensor | None = None) -> Tensor:
    """Summed −log softmax(hidden · weightᵀ)[targets] in nats.

    hidden: (n, d_model); weight: (vocabulary, d_model); targets: (n,) int64, all real labels. Or (n, width), of which
    each has its share: shares (n, width) fp32, which sum to one; a label may stand there several times.
    """
    targets = targets if shares is not None else targets[:, None]
    return _LinearCrossEntropy.apply(hidden, weight, targets, shares, torch.is_grad_enabled())


def head_cross_entropy(
    head: Head, embedding: Embedding, states: Tensor, targets: Tensor, shares: Tensor | None = None
) -> Tensor:
    """Summed cross-entropy of the head's logits in nats. states: (n, d_model); targets and shares as in
    `linear_cross_entropy`. embedding: of the model, which a tied head shares.
    """
    if head.is_plain:
        weight = embedding.tokens.weight if head.weight is None else head.weight
        return linear_cross_entropy(states, weight, targets, shares)

    def loss(rows: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(head(rows, embedding).float(), labels, reduction="sum")

    def soft_loss(rows: Tensor, labels: Tensor, parts: Tensor) -> Tensor:
        return -(head(rows, embedding).float().log_softmax(-1).gather(1, labels) * parts).sum()

    return in_chunks(loss, states, targets) if shares is None else in_chunks(soft_loss, states, targets, shares)


def logprobs_and_entropies(head: Head, embedding: Embedding, states: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Of each row the log-probability of its target in nats, and the entropy of its distribution, which has no
    gradient: (n,) fp32 each. states: (n, d_model); targets: (n,) int64. Many logits are made again for their gradient.
    """

    def of_rows(rows: Tensor, labels: Tensor) -> Tensor:
        everything = head(rows, embedding).float().log_softmax(-1)
        with torch.no_grad():
            entropies = -(everything.exp() * everything).sum(-1)
        return torch.stack([everything.gather(1, labels[:, None]).squeeze(1), entropies])

    vocab_size = len(embedding.tokens.weight if head.weight is None else head.weight)
    again = torch.is_grad_enabled() and len(states) * vocab_size > _KEPT
    parts = [
        checkpoint(of_rows, *rows, use_reentrant=False, preserve_rng_state=False) if again else of_rows(*rows)
        for rows in zip(states.split(_CHUNK), targets.split(_CHUNK), strict=True)
    ]
    logprobs, entropies = torch.cat(parts, 1)
    return logprobs, entropies.detach()


def in_chunks(function: Callable[..., Tensor], states: Tensor, *others: Tensor) -> Tensor:
    """The sum of `function` over chunks of rows. What a chunk needs for its gradient is made again when it is needed,
    so that only one chunk's logits stand at a time.
    """
    total = states.new_zeros((), dtype=torch.float32)
    for rows in zip(*(column.split(_CHUNK) for column in (states, *others)), strict=True):
        if torch.is_grad_enabled():
            total = total + checkpoint(function, *rows, use_reentrant=False, preserve_rng_state=False)
        else:
            total = total + function(*rows)
    return total
