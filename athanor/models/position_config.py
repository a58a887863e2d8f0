"""How a model knows where its tokens stand, as plain data: what an attention's `position` can be.

Learned and sinusoidal positions are added to the tokens' vectors instead and belong to `EmbeddingConfig`.
"""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real
from typing import Literal

from athanor.base.errors import ModelError
from athanor.models.sizes import positive


@dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched for longer contexts.

    linear (Chen et al. 2023), dynamic (NTK-aware, grows with the sequence), llama3 (Llama 3.1), yarn (Peng et al.
    2023), longrope (Ding et al. 2024: a factor a frequency, one set below and one above `original_length`).
    attention_factor: of cosines and sines; None for the method's own.
    """

    kind: Literal["linear", "dynamic", "llama3", "yarn", "longrope"]
    factor: float
    original_length: int
    low: float = 1.0  # llama3: low_freq_factor; yarn: beta_slow
    high: float = 4.0  # llama3: high_freq_factor; yarn: beta_fast
    attention_factor: float | None = None
    truncate: bool = True
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        positive("original_max_position_embeddings", self.original_length)
        for name in ("factor", "low", "high"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < float("inf"):
                raise ModelError(f"rope scaling: {name} = {value!r} is not a positive number.")
        if self.kind == "longrope" and not (self.short_factors and len(self.short_factors) == len(self.long_factors)):
            raise ModelError("rope scaling: longrope needs short_factor and long_factor of one length.")


@dataclass(frozen=True)
class RopeConfig:
    """Rotary positions (Su et al. 2021). share: of each head that is turned. interleaved: neighbours are turned against
    each other (GPT-J), else the halves (GPT-NeoX).
    """

    theta: float = 10_000.0
    share: float = 1.0
    interleaved: bool = False
    scaling: RopeScaling | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.theta, Real) or not 0 < self.theta < float("inf"):
            raise ModelError(f"rope_theta = {self.theta!r} is not a positive number.")
        if not isinstance(self.share, Real) or not 0 < self.share <= 1:
            raise ModelError(f"partial_rotary_factor = {self.share!r} is not above 0 and at most 1.")


@dataclass(frozen=True)
class Alibi:
    """Scores fall linearly with distance, at a slope a head (Press et al. 2022). scaled: the penalty is divided by
    √head_dim like the scores (Falcon).
    """

    scaled: bool = False


@dataclass(frozen=True)
class RelativeBias:
    """A learned bias a head for each bucket of distances (T5, Raffel et al. 2020); the stack's layers share one."""

    buckets: int = 32
    farthest: int = 128

    def __post_init__(self) -> None:
        positive("relative_attention_num_buckets", self.buckets)
        positive("relative_attention_max_distance", self.farthest)


@dataclass(frozen=True)
class Disentangled:
    """Content is scored against learned vectors of distances (DeBERTa, He et al. 2021); the stack's layers share them.

    farthest: longer distances count as this one. buckets: vectors to a side, where half of them stand for a distance
    each and the rest share logarithmically; None for one for every distance. content_to_position: queries are scored
    against the vector of the key's distance; position_to_content: keys against that of the query's. shared: vectors are
    projected by the layer's matrices for tokens, not by their own. normed: they get a norm as the layers have it.
    """

    farthest: int
    buckets: int | None = None
    content_to_position: bool = True
    position_to_content: bool = True
    shared: bool = False
    normed: bool = False

    def __post_init__(self) -> None:
        positive("max_relative_positions", self.farthest)
        if not (self.content_to_position or self.position_to_content):
            raise ModelError("Disentangled attention scores content to position, position to content, or both.")
        if self.buckets is not None:
            positive("position_buckets", self.buckets)
            if not 1 <= self.buckets // 2 < self.farthest - 1:
                raise ModelError(
                    f"position_buckets = {self.buckets} cannot stand for distances up to {self.farthest}.",
                    f"Choose from 2 to {2 * self.farthest - 3}, or none.",
                )

    @property
    def span(self) -> int:
        """Vectors to a side."""
        return self.buckets or self.farthest


Position = RopeConfig | Alibi | RelativeBias | Disentangled | None
