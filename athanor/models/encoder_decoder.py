"""Encoder and decoder together: one reads a source, the other writes a target and looks at what was read (Vaswani et
al. 2017; T5, Raffel et al. 2020).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from athanor.models.block import Block
from athanor.models.cache import Cache
from athanor.models.config import EncoderDecoderConfig
from athanor.models.head import Head
from athanor.models.stack import Stack
from athanor.models.where import Where, batch_and_time, text_positions, valid_keys


class EncoderDecoder(nn.Module):
    """source (batch, time) and target (batch, time') int64 → logits (batch, time', vocab_size) of each next target
    token.

    The target begins with `config.start_id`; see `shifted`.
    """

    def __init__(self, config: EncoderDecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Stack(config.encoder)
        self.decoder = Stack(config.decoder, self.encoder.embedding.tokens if config.shared_embedding else None)
        self.head = Head(config.decoder)

    def encode(self, source: Tensor, source_mask: Tensor | None = None) -> Tensor:
        """States (batch, time, d_model). source_mask: (batch, time), 0 for padding."""
        positions = torch.arange(source.shape[1], device=source.device).expand_as(source)
        valid = valid_keys(source_mask, *batch_and_time(source))
        if self.config.encoder.embedding.positions_from_text and valid is not None:
            positions = text_positions(valid)
        return self.encoder(source, Where(positions, causal=False, valid=valid))

    def read(self, states: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Each decoder layer's keys and values of the source; made once, and used for every token written."""
        layers = (block.cross_attention for block in self.decoder.blocks if isinstance(block, Block))
        return [layer.read(states) for layer in layers if layer is not None]

    def decode(
        self,
        target: Tensor,
        source: Sequence[tuple[Tensor, Tensor]],
        source_mask: Tensor | None = None,
        target_mask: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """Logits of each next token. source: as `read` gives it. target_mask: (batch, all target tokens so far)."""
        before = cache.length if cache else 0
        batch, time = batch_and_time(target)
        slots = torch.arange(before, before + time, device=target.device)
        positions, valid = slots.expand(batch, time), valid_keys(target_mask, batch, before + time)
        if self.config.decoder.embedding.positions_from_text and valid is not None:
            positions = text_positions(valid)[:, before:]
        where = Where(
            positions, causal=True, slots=slots[None] if before else None, attended=before + time, valid=valid
        )
        allowed = valid_keys(source_mask, batch, source[0][0].shape[2])
        allowed = None if allowed is None else allowed[:, None, None, :]
        states = self.decoder(target, where, cache.layers if cache else None, None, source, allowed)
        if cache:
            cache.length += time
        return self.head(states, self.decoder.embedding)

    def hidden(
        self,
        source: Tensor,
        target: Tensor,
        *,
        source_positions: Tensor,
        source_documents: Tensor,
        positions: Tensor,
        document_ids: Tensor,
    ) -> Tensor:
        """The decoder's states (batch, time', d_model) over packed rows: a target sees its own source, and no other.

        The keywords are (batch, time) of source and target; document −1 is padding.
        """
        states = self.encoder(source, Where(source_positions, causal=False, document_ids=source_documents))
        own = document_ids[:, :, None] == source_documents[:, None, :]
        allowed = own | (document_ids < 0)[:, :, None]  # padding would see nothing, and give what is no number
        where = Where(positions, causal=True, document_ids=document_ids)
        return self.decoder(target, where, None, None, self.read(states), allowed[:, None])

    def forward(
        self, source: Tensor, target: Tensor, source_mask: Tensor | None = None, target_mask: Tensor | None = None
    ) -> Tensor:
        return self.decode(target, self.read(self.encode(source, source_mask)), source_mask, target_mask)

    def shifted(self, target: Tensor) -> Tensor:
        """What the decoder is given to predict `target`: the same, one place later, after the start token."""
        return torch.cat([torch.full_like(target[:, :1], self.config.start_id), target[:, :-1]], dim=1)
