"""The first rung: the model of `athanor.models` over a paged cache, with stock torch operations.

It runs every decoder family and keeps the law of all rungs by computing row by row (`same_bits`): products are packed,
attention goes over lengths that depend on a token's place alone, and the tokens of a step are padded to a number of
rows at which elementwise operations are not cut within a vector. Frequencies that depend on the length of the text
(dynamic and long rotary scaling) are those of the whole context, as vLLM and llama.cpp have it.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, TypeVar, get_args

import numpy as np
import torch
from torch import Tensor, nn

from athanor.engine.packed_model import packed, relative_table
from athanor.engine.paged_attention import PagedLayer, Scratch, groups
from athanor.engine.products import Quantized
from athanor.engine.rung import Cache, Segment, check_contents, check_finite
from athanor.engine.same_bits import row_count, widths
from athanor.models.config import AttentionConfig, LayerConfig
from athanor.models.decoder import Decoder
from athanor.models.ngram_memory import Followers, NGramMemory
from athanor.models.position_config import RopeConfig
from athanor.models.precision import autocast

_BLOCK = 16


class TorchRung:
    """precision: "auto" computes in the type of the weights, "fp32" in fp32; "bf16" and "fp16" as `autocast` does;
    "int8" and "int4" as "auto", but matrices have 8 or 4 bits and are multiplied with rows in bf16. Keys and values are
    kept in the type of the products, or in 8 bits.
    """

    block_size = _BLOCK

    def __init__(self, model: Decoder, precision: str = "fp32", cache: Cache = "auto") -> None:
        """Raises ModelError for weights that are not finite, and for models that depend on the whole text."""
        self.config = model.config
        self._form: Quantized | None = precision if precision in get_args(Quantized) else None  # type: ignore[assignment]
        self._widens = precision == "fp32"
        self.precision = precision = "fp32" if self._form or precision == "auto" else precision
        self.device = next(model.parameters()).device
        with autocast(precision, self.device):
            enabled = torch.is_autocast_enabled(self.device.type)
            self._products = torch.get_autocast_dtype(self.device.type) if enabled else None
        self._cached = self._products or (torch.float32 if self._widens else next(model.parameters()).dtype)
        check_finite(model.named_parameters())
        self._take(model)
        self._heads = max(layer.attention.n_heads for layer in self.config.layers)
        self._widths = widths(self.config)
        self._stretches = any(_depends_on_length(layer) for layer in self.config.layers)
        self._layers: list[PagedLayer] = []
        self._blocks = 0
        self._eight_bits = cache == "int8"
        element = 1 if self._eight_bits else torch.empty((), dtype=self._cached).element_size()
        scales = 8 if self._eight_bits else 0
        place = sum(
            a.n_kv_heads * ((a.key_dim + a.value_dim) * element + scales)
            for a in (layer.attention for layer in self.config.layers)
        )
        self.bytes_per_block = self.block_size * place

    def allocate(self, blocks: int) -> None:
        self._blocks, scratch = blocks, Scratch(self.device)
        self._layers = [
            PagedLayer(layer.attention, blocks, self.block_size, self._cached, scratch, self.device, self._eight_bits)
            for layer in self.config.layers
        ]

    def update_weights(self, model: Decoder) -> None:
        check_finite(model.named_parameters())
        self._take(model)

    def _take(self, model: Decoder) -> None:
        model = in_fp32(model) if self._widens else model
        self._model = packed(model, self._products, self._form)
        self._relative = relative_table(model)
        memory = self._model.embedding.memory
        self.lookback = memory.longest if memory else 0

    @torch.inference_mode()
    def forward(self, segments: Sequence[Segment]) -> np.ndarray:
        tokens = np.concatenate([segment.tokens for segment in segments]).astype(np.int64)
        places = np.concatenate([np.arange(s.start, s.start + len(s.tokens)) for s in segments])
        blocks = np.concatenate([s.blocks[np.arange(s.start, s.start + len(s.tokens)) // _BLOCK] for s in segments])
        n, rows = len(tokens), self._rows(len(tokens))
        slots = torch.from_numpy(blocks.astype(np.int64) * _BLOCK + places % _BLOCK).to(self.device)
        fresh = torch.from_numpy(blocks[places % _BLOCK == 0].astype(np.int64)).to(self.device)
        about = groups(segments, self._heads, _BLOCK, self._blocks, self.device)
        for layer in self._layers:
            layer.begin(about, slots, fresh, self._relative)
        last = self.config.max_seq_len - 1 if self._stretches else 0
        padded_tokens, padded_places = np.zeros(rows, dtype=np.int64), np.full(rows, last)
        padded_tokens[:n], padded_places[:n] = tokens, places
        wanted, memory = _wanted(segments), self._model.embedding.memory
        with autocast(self.precision, self.device):
            hidden = self._model.hidden(
                torch.from_numpy(padded_tokens)[None].to(self.device),
                positions=torch.from_numpy(padded_places)[None].to(self.device),
                cache=self._layers,
                source=self._sources(segments),
                followers=_followers(memory, segments, rows, self.device) if memory else None,
            )[0]
            if not len(wanted):
                return np.empty((0, self.config.vocab_size), dtype=np.float32)
            chosen = self._padded(hidden[torch.from_numpy(wanted).to(self.device)])
            return self._model.logits(chosen)[: len(wanted)].float().cpu().numpy()

    def _sources(self, segments: Sequence[Segment]) -> list[Any] | None:
        """For each layer what its cross-attention takes: a decoder has none."""
        return None

    def _rows(self, n: int) -> int:
        """How many rows n tokens are computed as; one more where the last shows how long a text can be."""
        return row_count(n + self._stretches, self._widths)

    def _padded(self, states: Tensor) -> Tensor:
        rows = self._rows(len(states))
        return torch.cat([states, states[-1:].expand(rows - len(states), -1)]) if rows > len(states) else states

    def copy_block(self, source: int, target: int) -> None:
        for layer in self._layers:
            for part in layer.parts:
                part[:, target] = part[:, source]

    @torch.inference_mode()
    def read_blocks(self, blocks: Sequence[int]) -> np.ndarray:
        chosen = torch.tensor(list(blocks), dtype=torch.int64, device=self.device)
        parts = [_as_bytes(part.index_select(1, chosen).transpose(0, 1).flatten(1)) for part in self._parts()]
        return torch.cat(parts, 1).cpu().numpy()

    @torch.inference_mode()
    def write_blocks(self, blocks: Sequence[int], data: np.ndarray) -> None:
        check_contents(blocks, data, self.bytes_per_block)
        chosen = torch.tensor(list(blocks), dtype=torch.int64, device=self.device)
        rows, parts = torch.from_numpy(data).to(self.device), self._parts()
        sizes = [part.shape[0] * part.shape[2] * part.element_size() for part in parts]
        for part, new in zip(parts, rows.split(sizes, 1), strict=True):
            numbers = new.contiguous().view(part.dtype).view(len(rows), part.shape[0], -1)
            part.index_copy_(1, chosen, numbers.transpose(0, 1))

    def _parts(self) -> list[Tensor]:
        return [part for layer in self._layers for part in layer.parts]


M = TypeVar("M", bound=nn.Module)


def in_fp32(model: M) -> M:
    """The model itself, or a copy whose weights are in fp32."""
    return model if all(part.dtype == torch.float32 for part in model.parameters()) else copy.deepcopy(model).float()


def _as_bytes(numbers: Tensor) -> Tensor:
    return numbers.contiguous().view(torch.uint8)


def _followers(memory: NGramMemory, segments: Sequence[Segment], rows: int, device: torch.device) -> Followers:
    """(1, rows, width): of the segments' tokens, and nothing for the rows behind them."""
    tokens = np.concatenate([part for segment in segments for part in (segment.before, segment.tokens)])
    lengths = [len(segment.before) + len(segment.tokens) for segment in segments]
    documents = np.repeat(np.arange(len(segments)), lengths)
    asked = np.concatenate([np.arange(n) >= len(s.before) for n, s in zip(lengths, segments, strict=True)])
    words, shares = memory.counted.look_up(tokens[None].astype(np.int64), documents[None])
    spare = ((0, 0), (0, rows - int(asked.sum())), (0, 0))
    found = (torch.from_numpy(np.pad(part[:, asked], spare)).to(device) for part in (words, shares))
    return Followers(*found)


def _wanted(segments: Sequence[Segment]) -> np.ndarray:
    """Rows of the tokens whose logits are asked for."""
    ends = np.cumsum([len(segment.tokens) for segment in segments])
    found = [np.arange(end - segment.wanted, end) for segment, end in zip(segments, ends.tolist(), strict=True)]
    return np.concatenate(found).astype(np.int64)


def _depends_on_length(layer: LayerConfig) -> bool:
    place = layer.attention.position
    if not isinstance(place, RopeConfig) or place.scaling is None:
        return False
    return isinstance(layer.attention, AttentionConfig) and place.scaling.kind in ("dynamic", "longrope")
