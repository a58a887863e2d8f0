"""Where the tokens of a forward pass stand, and what each may attend to.

All layers of a model share one `Where`; what several of them need (rotary angles, masks) is made once and kept.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TypeVar

import torch
from torch import Tensor

from athanor.base.errors import ModelError
from athanor.models.position_config import Alibi, RopeConfig
from athanor.models.positions import alibi_slopes
from athanor.models.rope import rotary_angles

T = TypeVar("T")


def batch_and_time(tokens: Tensor) -> tuple[int, int]:
    """Raises ModelError for what is no (batch, time) of ids."""
    if tokens.dim() != 2 or tokens.is_floating_point():
        raise ModelError(
            f"Tokens of shape {tuple(tokens.shape)} and {tokens.dtype} cannot be read.",
            "Give ids as (batch, time) of torch.int64; one text is tokens[None].",
        )
    return tokens.shape[0], tokens.shape[1]


def valid_keys(attention_mask: Tensor | None, batch: int, attended: int) -> Tensor | None:
    """The mask as bool; None where nothing is padding. Raises ModelError where it is not (batch, attended)."""
    if attention_mask is None:
        return None
    if attention_mask.shape != (batch, attended):
        raise ModelError(
            f"The attention mask has the shape {tuple(attention_mask.shape)} instead of {(batch, attended)}.",
            "It covers all tokens so far, those in the cache too.",
        )
    valid = attention_mask.bool()
    return None if valid.all() else valid


def text_positions(valid: Tensor) -> Tensor:
    """(batch, time) int64: positions that count only what is no padding."""
    return (valid.long().cumsum(-1) - 1).clamp(min=0)


def _added(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros_like(allowed, dtype=dtype).masked_fill_(~allowed, -torch.inf)


class Where:
    """positions: (batch, time) int, of the tokens. slots: (batch or 1, time), their places among the keys, and
    `attended`, the number of keys; without a cache simply 0 … time − 1. valid: (batch, attended) bool, keys that are no
    padding. document_ids: (batch, time), for packed rows. mask: (batch, 1, time, attended) bool, instead of the
    causal order and of these two.
    """

    def __init__(
        self,
        positions: Tensor,
        *,
        causal: bool,
        slots: Tensor | None = None,
        attended: int | None = None,
        valid: Tensor | None = None,
        document_ids: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> None:
        self.positions, self.causal, self.valid = positions, causal, valid
        self.document_ids, self.given = document_ids, mask
        time = positions.shape[1]
        self.slots = torch.arange(time, device=positions.device)[None] if slots is None else slots
        self.attended = time if attended is None else attended
        self._continues = slots is not None
        self._kept: dict[Hashable, object] = {}

    def _once(self, key: Hashable, make: Callable[[], T]) -> T:
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]  # type: ignore[return-value]

    def angles(self, rope: RopeConfig, dim: int) -> tuple[Tensor, Tensor]:
        return self._once(("angles", rope, dim), lambda: rotary_angles(self.positions, dim, rope))

    def mask(self, window: int | None = None) -> Tensor | None:
        """(batch or 1, 1, time, attended) bool, True where attended; None where `is_causal` says all."""
        return self._once(("mask", window), lambda: self._mask(window))

    def added_mask(self, window: int | None, dtype: torch.dtype) -> Tensor | None:
        """The same to be added to scores: 0 or −inf. Attention would make it of the other in every layer."""
        allowed = self.mask(window)
        if allowed is None:
            return None
        return self._once(("added", window, dtype), lambda: _added(allowed, dtype))

    def spans(self, window: int | None = None) -> tuple[Tensor, Tensor] | None:
        """(batch, time) int32 each: the first and the last key that a token attends to, and to all between; None where
        it is not as simple as that.
        """
        return self._once(("spans", window), lambda: self._spans(window))

    def _spans(self, window: int | None) -> tuple[Tensor, Tensor] | None:
        if self._continues or self.valid is not None or self.given is not None:
            return None
        places = self.slots.expand(self.positions.shape).to(torch.int32)
        first, last = torch.zeros_like(places), torch.full_like(places, places.shape[1] - 1)
        if self.document_ids is not None:
            above = self.document_ids.max() + 1
            steps = torch.where(self.document_ids < 0, above, self.document_ids).diff(
                dim=1
            )  # padding stands at the end
            if (steps < 0).any():  # a document may go on after another one
                return None
            first[:, 1:] = torch.where(steps > 0, places[:, 1:], 0).cummax(dim=1).values
            ends = torch.where(steps > 0, places[:, :-1], last[:, 1:])
            last[:, :-1] = ends.flip(1).cummin(dim=1).values.flip(1)
        if window is not None:
            first = torch.maximum(first, places - (window - 1 if self.causal else window // 2))
        if self.causal:
            last = places
        elif window is not None:
            last = torch.minimum(last, places + window // 2)
        return first, last.contiguous()

    def bounds(self) -> tuple[Tensor, int] | None:
        """(documents + 1,) int32, where each begins when all rows stand behind one another and where the last ends, and
        the length of the longest; None where `spans` has none.
        """
        return self._once("bounds", self._bounds)

    def _bounds(self) -> tuple[Tensor, int] | None:
        spans = self.spans()
        if spans is None:
            return None
        begins = (spans[0] == self.slots).flatten().nonzero().squeeze(1)
        edges = torch.cat([begins, begins.new_full((1,), self.positions.numel())]).to(torch.int32)
        return edges, int(edges.diff().max())

    @property
    def is_causal(self) -> bool:
        """Whether a mask of None means the triangle."""
        return self.causal and self.positions.shape[1] > 1

    def _mask(self, window: int | None) -> Tensor | None:
        reaches = window is None or (window if self.causal else window // 2 + 1) >= self.attended
        if self.given is not None:
            return self.given if reaches else self.given & self._near(window)
        parts = []
        if self.causal and (self._continues or not reaches or self.valid is not None or self.document_ids is not None):
            parts.append(self.distance() >= 0)
        if not reaches:
            parts.append(self._near(window))
        if self.valid is not None:
            parts.append(self.valid[:, None, None, :])
        if self.document_ids is not None:
            parts.append((self.document_ids[:, :, None] == self.document_ids[:, None, :])[:, None])
        if not parts:
            return None
        allowed = parts[0]
        for part in parts[1:]:
            allowed = allowed & part
        if self.valid is not None:  # a padding token would attend to nothing, and give what is no number
            allowed = allowed | ((self.distance() == 0) & ~self.valid[:, None, None, :])
        return allowed

    def distance(self) -> Tensor:
        """(batch or 1, 1, time, attended): how far back a key lies."""
        keys = torch.arange(self.attended, device=self.positions.device)
        return (self.slots[:, :, None] - keys)[:, None]

    def _near(self, window: int | None) -> Tensor:
        """Within the window: only backwards where causal, to both sides in an encoder."""
        assert window is not None
        return (self.distance() < window) if self.causal else (self.distance().abs() <= window // 2)

    def bias(self, window: int | None, alibi: Alibi, n_heads: int, scale: float) -> Tensor:
        """The scores' additive bias (batch or 1, heads, time, attended), −inf where nothing may be attended to."""
        return self._once(("alibi", window, alibi, n_heads, scale), lambda: self._alibi(window, n_heads, scale, alibi))

    def _alibi(self, window: int | None, n_heads: int, scale: float, alibi: Alibi) -> Tensor:
        slopes = alibi_slopes(n_heads).to(self.positions.device)[:, None, None] * (scale if alibi.scaled else 1.0)
        return self.masked(-slopes * self.distance().float(), window)

    def masked(self, bias: Tensor, window: int | None = None) -> Tensor:
        """`bias` (batch or 1, heads, time, attended) with −inf where nothing may be attended to."""
        allowed = self.mask(window)
        if allowed is None:
            if not self.is_causal:
                return bias
            allowed = self.distance() >= 0
        return bias.masked_fill(~allowed, -torch.inf)
