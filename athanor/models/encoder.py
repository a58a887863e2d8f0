"""The encoder: every token sees the whole text. Its heads predict hidden words, say what two sentences have to do with
each other (BERT, Devlin et al. 2019), or of which class a text is.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from athanor.base.errors import ModelError
from athanor.models.config import ModelConfig
from athanor.models.head import Head
from athanor.models.mlp import ACTIVATIONS
from athanor.models.stack import Stack
from athanor.models.where import Where, batch_and_time, text_positions, valid_keys


class Encoder(Stack):
    """tokens (batch, time) int64 → masked-word logits (batch, time, vocab_size); `encode` gives the states."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.head = Head(config) if config.head else None
        self.pooler = nn.Linear(config.d_model, config.d_model) if config.pooler else None
        self.next_sentence = nn.Linear(config.d_model, 2) if config.next_sentence else None
        self.classifier = nn.Linear(config.d_model, len(config.classifier.labels)) if config.classifier else None

    def encode(
        self,
        tokens: Tensor,
        attention_mask: Tensor | None = None,
        types: Tensor | None = None,
        *,
        positions: Tensor | None = None,
        document_ids: Tensor | None = None,
    ) -> Tensor:
        """The final states (batch, time, d_model). attention_mask: (batch, time), 0 for padding. types: segments.

        positions, document_ids: (batch, time), for packed rows, whose texts do not see one another.
        """
        valid = valid_keys(attention_mask, *batch_and_time(tokens))
        if positions is None:
            positions = self._positions(tokens, valid)
        where = Where(positions, causal=False, valid=valid, document_ids=document_ids)
        return super().forward(tokens, where, types=types)

    def _positions(self, tokens: Tensor, valid: Tensor | None) -> Tensor:
        if self.config.embedding.padding_id is not None:
            counted = tokens != self.config.embedding.padding_id
            return counted.long().cumsum(-1) * counted - 1
        if self.config.embedding.positions_from_text and valid is not None:
            return text_positions(valid)
        return torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)

    def pool(self, states: Tensor) -> Tensor:
        """The first token's state, through a dense layer and tanh, or what its classifier says: (batch, d_model)."""
        if self.pooler is None:
            raise ModelError("This encoder has no pooler.", "Set pooler=True in its configuration.")
        activation = self.config.classifier.activation if self.config.classifier else "tanh"
        return ACTIVATIONS[activation](self.pooler(states[:, 0]))

    def classify(self, states: Tensor) -> Tensor:
        """Logits of each text's classes (batch, labels), from its states."""
        if self.classifier is None:
            raise ModelError("This encoder is no classifier.", "`athanor run bert --set classify=topic` makes one.")
        return self.classifier(self.pool(states))

    def forward(self, tokens: Tensor, attention_mask: Tensor | None = None, **text: Any) -> Tensor:  # type: ignore[override]
        if self.head is None:
            raise ModelError("This encoder has no head.", "Ask it to `encode`.")
        return self.head(self.encode(tokens, attention_mask, **text), self.embedding)
