"""A stack of layers between an embedding and a final norm: what decoders, encoders, and both halves of an
encoder–decoder share.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from athanor.models.attention import LayerCache
from athanor.models.block import Block
from athanor.models.config import AttentionConfig, ModelConfig
from athanor.models.embedding import Embedding
from athanor.models.norm import norm
from athanor.models.position_config import RelativeBias
from athanor.models.positions import RelativeBiasTable
from athanor.models.where import Where


class Stack(nn.Module):
    def __init__(self, config: ModelConfig, tokens: nn.Embedding | None = None) -> None:
        """tokens: another stack's table of tokens, to be shared."""
        super().__init__()
        self.config = config
        self.embedding = Embedding(config, tokens)
        first = config.layers[0].attention
        relative = isinstance(first, AttentionConfig) and isinstance(first.position, RelativeBias)
        self.relative_bias = (
            RelativeBiasTable(first.position, first.n_heads, config.causal) if relative else None  # type: ignore
        )
        distinct = config.layers[: config.groups] if config.groups else config.layers
        self.blocks = nn.ModuleList(Block(config.d_model, layer) for layer in distinct)
        self.norm = norm(config.d_model, config.norm)

    def forward(
        self,
        tokens: Tensor,
        where: Where,
        cache: Sequence[LayerCache] | None = None,
        types: Tensor | None = None,
        source: Sequence[tuple[Tensor, Tensor]] | None = None,
        source_mask: Tensor | None = None,
    ) -> Tensor:
        """The final states (batch, time, d_model).

        cache: one `LayerCache` a layer. source: keys and values of an encoder's states, a pair a layer.
        """
        x = self.embedding(tokens, where.positions, types)
        bias = None if self.relative_bias is None else where.masked(self.relative_bias(where.distance()))
        for i in range(self.config.n_layers):
            # divided as ALBERT's reference does, which where groups are uneven decides on the layer between two
            block = self.blocks[int(i / (self.config.n_layers / len(self.blocks)))]
            read = None if source is None else (source[i], source_mask)
            x = block(x, where, None if cache is None else cache[i], bias, read)
        return self.norm(x)
