"""A stack of layers between an embedding and a final norm: what decoders, encoders, and both halves of an
encoder–decoder share.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from athanor.models.attention import LayerCache, SequencesCache
from athanor.models.block import Block
from athanor.models.config import ModelConfig
from athanor.models.disentangled import Distances, DistanceTable
from athanor.models.embedding import Embedding
from athanor.models.ngram_memory import Followers
from athanor.models.norm import norm
from athanor.models.position_config import Disentangled, RelativeBias
from athanor.models.positions import RelativeBiasTable
from athanor.models.where import Where


class Stack(nn.Module):
    def __init__(self, config: ModelConfig, tokens: nn.Embedding | None = None) -> None:
        """tokens: another stack's table of tokens, to be shared."""
        super().__init__()
        self.config = config
        self.embedding = Embedding(config, tokens)
        first, norms = config.layers[0].attention, config.layers[0].norm
        place, n_heads = first.position, first.n_heads
        self.relative_bias = (
            RelativeBiasTable(place, n_heads, config.causal) if isinstance(place, RelativeBias) else None
        )
        self.distances = DistanceTable(config.d_model, place, norms) if isinstance(place, Disentangled) else None
        self._order = config.sharing or tuple(range(config.n_layers))
        distinct = (config.layers[self._order.index(number)] for number in range(config.n_blocks))
        self.blocks = nn.ModuleList(Block(config.d_model, layer) for layer in distinct)
        self.norm = norm(config.d_model, config.norm)

    def forward(
        self,
        tokens: Tensor,
        where: Where,
        cache: Sequence[LayerCache | SequencesCache] | None = None,
        types: Tensor | None = None,
        source: Sequence[tuple[Tensor, Tensor]] | None = None,
        source_mask: Tensor | None = None,
        followers: Followers | None = None,
    ) -> Tensor:
        """The final states (batch, time, d_model).

        cache: one `LayerCache` a layer. source: keys and values of an encoder's states, a pair a layer. followers: of
        an n-gram memory.
        """
        x = self.embedding(tokens, where.positions, types, followers)
        relative = self._relative(where)
        for i, number in enumerate(self._order):
            read = None if source is None else (source[i], source_mask)
            x = self.blocks[number](x, where, None if cache is None else cache[i], relative, read)
        return self.norm(x)

    def _relative(self, where: Where) -> Tensor | Distances | None:
        """What all layers share about distances."""
        if self.distances is not None:
            found: Distances = self.distances(where.distance())
            return found
        return None if self.relative_bias is None else where.masked(self.relative_bias(where.distance()))
