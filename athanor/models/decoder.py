"""The decoder: embedding, layers, final norm, head (tied to the embedding by default).

It is a plain single-device module. Training asks for `hidden` and applies the head itself, only where there is a label;
decoding hands in a cache; nobody needs a second forward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from athanor.models.attention import LayerCache, SequencesCache
from athanor.models.cache import Cache
from athanor.models.config import ModelConfig
from athanor.models.head import Head
from athanor.models.ngram_memory import Followers
from athanor.models.stack import Stack
from athanor.models.where import Where, batch_and_time, text_positions, valid_keys


class Decoder(Stack):
    """tokens (batch, time) int64 → logits (batch, time, vocab_size)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.head = Head(config)

    @property
    def head_weight(self) -> Tensor:
        """(vocab_size, d_model)."""
        return self.embedding.tokens.weight if self.head.weight is None else self.head.weight

    def hidden(
        self,
        tokens: Tensor,
        *,
        attention_mask: Tensor | None = None,
        positions: Tensor | None = None,
        document_ids: Tensor | None = None,
        mask: Tensor | None = None,
        cache: Cache | Sequence[LayerCache | SequencesCache] | None = None,
        attended: int | None = None,
        followers: Followers | None = None,
        source: Sequence[Any] | None = None,
    ) -> Tensor:
        """The final normed states (batch, time, d_model).

        attention_mask: (batch, all tokens so far), 0 for padding on either side. positions: (batch, time) int, by
        default counted from the first token that is no padding. document_ids: (batch, time), for packed rows. mask:
        (batch, 1, time, time) bool of what sees what, instead of these and of the causal order; windows hold beside it.
        cache: a `Cache`, which grows; or one `LayerCache` a layer. attended: how many keys each of these gives, where
        rows of different lengths go on: the key at place j is that of position j. followers: what an n-gram memory
        says, where that is known better than by looking these tokens up: for text that was counted, or that goes on
        without a `Cache`. source: for each layer what its cross-attention takes, where it has one.
        """
        batch, time = batch_and_time(tokens)
        before = cache.length if isinstance(cache, Cache) else 0
        valid = valid_keys(attention_mask, batch, before + time if attended is None else attended)
        if positions is None and valid is not None:
            positions = text_positions(valid)[:, before:]
        elif positions is None:
            positions = torch.arange(before, before + time, device=tokens.device).expand(batch, time)
        if attended is not None:
            slots: Tensor | None = positions
        else:
            slots = torch.arange(before, before + time, device=tokens.device)[None] if before else None
        where = Where(
            positions,
            causal=self.config.causal,
            slots=slots,
            attended=before + time if attended is None else attended,
            valid=valid,
            document_ids=document_ids,
            mask=mask,
        )
        layers = cache.layers if isinstance(cache, Cache) else cache
        if followers is None and (memory := self.embedding.memory) is not None:
            earlier = cache.tokens if isinstance(cache, Cache) else None
            followers = memory.look_up(tokens, document_ids, None if valid is None else valid[:, before:], earlier)
            if isinstance(cache, Cache):
                cache.tokens = tokens if earlier is None else torch.cat([earlier, tokens], 1)[:, -memory.longest :]
        states = super().forward(tokens, where, layers, source=source, followers=followers)
        if isinstance(cache, Cache):
            cache.length += time
        return states

    def logits(self, hidden: Tensor) -> Tensor:
        return self.head(hidden, self.embedding)

    def forward(self, tokens: Tensor, attention_mask: Tensor | None = None, **where: Any) -> Tensor:  # type: ignore[override]
        return self.logits(self.hidden(tokens, attention_mask=attention_mask, **where))
