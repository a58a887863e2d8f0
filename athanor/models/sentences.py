"""One vector a sentence: the mean of an encoder's last states over what is no padding, or its first state, brought to
length one.

This is how the plain models of sentence-transformers end (Reimers and Gurevych 2019; all-MiniLM-L6-v2 is a `BertModel`
folder with `1_Pooling` and `2_Normalize` beside it), so that the cosine of two sentences is a dot product. Their folder
loads as any other; `engine.embedder` reads which of the two it wants.
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from athanor.models.encoder import Encoder

Pooling = Literal["mean", "first"]


def embed(model: Encoder, tokens: Tensor, attention_mask: Tensor | None = None, pooling: Pooling = "mean") -> Tensor:
    """tokens (batch, time) int64 → (batch, d_model), each of length one; zero where a row is nothing but padding.

    attention_mask: (batch, time), 0 for padding; by default everything counts.
    """
    states = model.encode(tokens, attention_mask)
    if pooling == "first":
        return F.normalize(states[:, 0], dim=-1)
    if attention_mask is None:
        return F.normalize(states.mean(1), dim=-1)
    kept = attention_mask.to(states.dtype)[..., None]
    return F.normalize((states * kept).sum(1) / kept.sum(1).clamp(min=1), dim=-1)
