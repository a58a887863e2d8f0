"""Reads the sources of an encoder–decoder, many at once and each as if it were alone.

The tokens of a pass stand behind each other in one row, as in `TorchRung`; sources that take equally many places attend
in one product. Padded places lie behind a source's own and are hidden, so its numbers depend on its length alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from athanor.engine.cross_attention import PagedCrossAttention, ReadSource
from athanor.engine.packed_model import packed_encoder
from athanor.engine.paged_attention import MOST_SCORES, attended, product
from athanor.engine.products import Quantized
from athanor.engine.same_bits import row_count, widths
from athanor.models.attention import SequencesCache
from athanor.models.config import AttentionConfig, LatentAttentionConfig, ModelConfig, MoeConfig
from athanor.models.decoder import Decoder
from athanor.models.position_config import Alibi, Disentangled
from athanor.models.positions import RelativeBiasTable
from athanor.models.stack import Stack
from athanor.models.where import Where

Ids = Sequence[int] | np.ndarray
_MOST_TOKENS = 2048  # of a pass, unless one source has more


def reads_together(encoder: ModelConfig) -> bool:
    """Whether what is read of a source can be kept apart from its neighbours: experts with a capacity see whole texts,
    and windows, slopes and disentangled distances are left to the plain model.
    """
    for layer in encoder.layers:
        attention, mlp = layer.attention, layer.mlp
        if not isinstance(attention, AttentionConfig) or attention.window is not None or attention.soft_cap is not None:
            return False
        if isinstance(attention.position, Alibi | Disentangled) or layer.convolution is not None:
            return False
        if isinstance(mlp, MoeConfig) and mlp.capacity is not None:
            return False
    return True


class SourceReader:
    """encoder: of the model; decoder: a packed one, whose cross-attention makes the keys and values that are kept.
    products, form: of the encoder's matrices, as `packed_model` has them.
    """

    def __init__(
        self, encoder: Stack, decoder: Decoder, products: torch.dtype | None, form: Quantized | None = None
    ) -> None:
        self._encoder, self._bias = packed_encoder(encoder, products, form), encoder.relative_bias
        self._crossings = [module.layer for module in decoder.modules() if isinstance(module, PagedCrossAttention)]
        self._widths = widths(encoder.config)
        self._n_layers, self._heads = encoder.config.n_layers, encoder.config.layers[0].attention.n_heads
        self._device = next(encoder.parameters()).device

    def read(self, sources: Sequence[Ids]) -> list[ReadSource]:
        """In the order of the sources."""
        return [read for some in _passes(sources) for read in self._pass(some)]

    def _pass(self, sources: Sequence[Ids]) -> list[ReadSource]:
        lengths = [len(source) for source in sources]
        rows = row_count(sum(lengths), self._widths)
        spare = rows - sum(lengths)
        tokens = np.concatenate(
            [*(np.asarray(source, dtype=np.int64) for source in sources), np.zeros(spare, np.int64)]
        )
        places = np.concatenate([np.arange(length) for length in lengths] + [np.zeros(spare, np.int64)])
        about = _groups(lengths, self._heads, self._device)
        layer = _SourceAttention(about, self._bias)
        where = Where(torch.from_numpy(places)[None].to(self._device), causal=False)
        states = self._encoder(torch.from_numpy(tokens)[None].to(self._device), where, [layer] * self._n_layers)
        found: list[ReadSource | None] = [None] * len(sources)
        read = [crossing.read(states) for crossing in self._crossings]
        for group in about:
            layers = [(group.gather(keys[0]).float(), group.gather(values[0]).float()) for keys, values in read]
            for i, number in enumerate(group.numbers):
                kept = [(keys[:, i].mT.contiguous(), values[:, i].clone()) for keys, values in layers]
                found[number] = ReadSource(kept, group.hidden[i])
        return [read for read in found if read is not None]


def _passes(sources: Sequence[Ids]) -> Iterator[list[Ids]]:
    some: list[Ids] = []
    for source in sources:
        if some and sum(map(len, some)) + len(source) > _MOST_TOKENS:
            yield some
            some = []
        some.append(source)
    if some:
        yield some


@dataclass(frozen=True)
class _Group:
    """Sources that take equally many places. numbers: which. rows: (sources · places,) of their tokens, the last
    repeated where a source has none. hidden: (sources, places) bool, where it has none.
    """

    numbers: list[int]
    rows: Tensor
    hidden: Tensor

    @property
    def places(self) -> int:
        return self.hidden.shape[1]

    @cached_property
    def own(self) -> Tensor:
        """Which of the rows are no repetitions."""
        return (~self.hidden).flatten().nonzero().squeeze(1)

    def gather(self, part: Tensor) -> Tensor:
        """(heads, rows, size) → (heads, sources, places, size)."""
        return part.index_select(1, self.rows).unflatten(1, self.hidden.shape)


def _groups(lengths: Sequence[int], heads: int, device: torch.device) -> list[_Group]:
    together: defaultdict[int, list[int]] = defaultdict(list)
    for number, length in enumerate(lengths):
        together[attended(length - 1)].append(number)
    ends, made = np.cumsum(lengths), list[_Group]()
    for places, numbers in together.items():
        most = max(1, MOST_SCORES // (heads * places * places))
        for some in (numbers[i : i + most] for i in range(0, len(numbers), most)):
            own = np.array([lengths[number] for number in some])[:, None]
            steps = np.arange(places)[None]
            rows = ends[some][:, None] - own + np.minimum(steps, own - 1)
            hidden = torch.from_numpy(steps >= own).to(device)
            made.append(_Group(some, torch.from_numpy(rows.reshape(-1)).to(device), hidden))
    return made


class _SourceAttention(SequencesCache):
    """Every layer's attention to all of a source."""

    def __init__(self, groups: Sequence[_Group], bias: RelativeBiasTable | None) -> None:
        self._groups = groups
        self._biases = {group.places: _bias(bias, group.places) for group in groups} if bias is not None else {}

    def attend(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        config: AttentionConfig | LatentAttentionConfig,
        scale: float,
    ) -> Tensor:
        shared = queries.shape[1] // keys.shape[1]
        mixed = queries.new_zeros(*queries.shape[1:3], values.shape[-1])
        for group in self._groups:
            asked, seen, told = (group.gather(part[0]).float() for part in (queries, keys, values))
            seen, told = (part.repeat_interleave(shared, 0) if shared > 1 else part for part in (seen, told))
            scores = product(asked.flatten(0, 1), seen.flatten(0, 1).mT).view(*asked.shape[:3], -1).mul_(scale)
            if self._biases:
                scores += self._biases[group.places]
            weights = scores.masked_fill_(group.hidden[:, None], -torch.inf).softmax(-1)
            found = product(weights.flatten(0, 1), told.flatten(0, 1)).reshape(len(mixed), -1, mixed.shape[-1])
            mixed.index_copy_(1, group.rows[group.own], found.index_select(1, group.own).to(mixed.dtype))
        return mixed[None]


def _bias(table: RelativeBiasTable, places: int) -> Tensor:
    """(heads, 1, places, places): of each distance forwards and backwards."""
    steps = torch.arange(places, device=table.weight.device)
    found: Tensor = table((steps[:, None] - steps)[None, None])
    return found.float().transpose(0, 1)
