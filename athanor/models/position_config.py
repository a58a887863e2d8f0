"""How a model knows where its tokens stand, as plain data: what an attention's `position` can be.

Learned and sinusoidal positions are added to the tokens' vectors instead and belong to `EmbeddingConfig`.
"""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real
from typing import Literal

from athanor.base.errors import ModelError
from athanor.models.sizes import positive, positive_real, word

ScalingKind = Literal["linear", "dynamic", "llama3", "yarn", "longrope"]


@dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched for longer contexts.

    linear (Chen et al. 2023), dynamic (NTK-aware, grows with the sequence), llama3 (Llama 3.1), yarn (Peng et al.
    2023), longrope (Ding et al. 2024: a factor a frequency, one set below and one above `original_length`).
    attention_factor: of cosines and sines; None for the method's own.
    """

    kind: ScalingKind
    factor: float
    original_length: int
    low: float = 1.0  # llama3: low_freq_factor; yarn: beta_slow
    high: float = 4.0  # llama3: high_freq_factor; yarn: beta_fast
    attention_factor: float | None = None
    truncate: bool = True
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        word("rope scaling: kind", self.kind, ScalingKind)
        positive("original_max_position_embeddings", self.original_length)
        for name in ("factor", "low", "high"):
            positive_real(f"rope scaling: {name}", getattr(self, name))
        if self.attention_factor is not None:
            positive_real("rope scaling: attention_factor", self.attention_factor)
        if not isinstance(self.truncate, bool):
            raise ModelError(f"rope scaling: truncate = {self.truncate!r} is neither true nor false.")
        if self.kind == "llama3" and not self.low < self.high:
            raise ModelError(f"rope scaling: low_freq_factor = {self.low} is not below high_freq_factor = {self.high}.")
        if self.kind == "longrope":
            for factor in (*self.short_factors, *self.long_factors):
                positive_real("rope scaling: a factor", factor)
            if self.original_length < 2:
                raise ModelError("rope scaling: longrope needs an original length of more than one token.")


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
        positive_real("rope_theta", self.theta)
        if not isinstance(self.share, Real) or not 0 < self.share <= 1:
            raise ModelError(f"partial_rotary_factor = {self.share!r} is not above 0 and at most 1.")
        if self.scaling is not None and self.scaling.kind == "yarn" and self.theta <= 1:
            raise ModelError(f"rope_theta = {self.theta} is not above 1, as YaRN needs it.")

    def check(self, dim: int, head_dim: int) -> None:
        """Raises ModelError where `dim` of the numbers of a head cannot be turned so."""
        if dim % 2 or not dim:
            raise ModelError(
                f"{dim} of head_dim = {head_dim} are turned, {'an odd number' if dim else 'which is nothing'}.",
                "Rotary positions turn pairs: choose an even number.",
            )
        scaling = self.scaling
        if scaling is not None and scaling.kind == "dynamic" and dim < 4:
            raise ModelError("rope scaling: dynamic needs more than one pair in each head.")
        if scaling is not None and scaling.kind == "longrope":
            for name in ("short_factors", "long_factors"):
                if len(getattr(scaling, name)) != dim // 2:
                    raise ModelError(
                        f"rope scaling: longrope has {len(getattr(scaling, name))} {name.replace('_', ' ')}; "
                        f"{dim // 2} pairs of each head are turned."
                    )


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
        if self.buckets < 4 or self.farthest <= self.buckets // 2:
            raise ModelError(
                f"Distances up to {self.farthest} cannot be put into {self.buckets} buckets.",
                "Choose at least 4 buckets, and more than half as many distances.",
            )


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
