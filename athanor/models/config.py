"""What a model is, as plain data: small frozen dataclasses that `Decoder` is built from.

Sizes are checked here, once, so that an impossible model is refused with a sentence before any memory is taken.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from numbers import Integral, Real

from athanor.base.errors import ModelError

_MOST_LAYERS, _LARGEST = 10_000, 1 << 31  # beyond these a file is damaged or hostile


@dataclass(frozen=True)
class AttentionConfig:
    """Grouped-query attention: `n_heads` query heads share `n_kv_heads` key-value heads of size `head_dim`."""

    n_heads: int
    n_kv_heads: int
    head_dim: int
    qk_norm: bool = True

    def __post_init__(self) -> None:
        for name in ("n_heads", "n_kv_heads", "head_dim"):
            _positive(name, getattr(self, name))
        if self.n_heads % self.n_kv_heads:
            raise ModelError(
                f"n_heads = {self.n_heads} is not a multiple of n_kv_heads = {self.n_kv_heads}.",
                f"Choose n_kv_heads among {_divisors(self.n_heads)}.",
            )
        if self.head_dim % 2:
            raise ModelError(
                f"head_dim = {self.head_dim} is odd.", "Rotary positions turn pairs: choose an even number."
            )


@dataclass(frozen=True)
class RopeConfig:
    """Rotary positions (Su et al. 2021), halves rotated against each other."""

    theta: float = 10_000.0

    def __post_init__(self) -> None:
        if not self.theta > 0:
            raise ModelError(f"rope_theta = {self.theta} is not positive.")


@dataclass(frozen=True)
class NormConfig:
    """RMSNorm (Zhang and Sennrich 2019) before attention, before the MLP, and before the head."""

    epsilon: float = 1e-6

    def __post_init__(self) -> None:
        if not isinstance(self.epsilon, Real) or not self.epsilon >= 0:
            raise ModelError(f"norm epsilon = {self.epsilon!r} is not a number from 0 upwards.")


@dataclass(frozen=True)
class MlpConfig:
    """SwiGLU (Shazeer 2020): down(silu(gate(x)) · up(x)) with inner width `d_ff`."""

    d_ff: int

    def __post_init__(self) -> None:
        _positive("d_ff", self.d_ff)


@dataclass(frozen=True)
class ModelConfig:
    """A decoder of the Qwen3 shape; with tied embeddings the head is the embedding matrix."""

    vocab_size: int
    d_model: int
    n_layers: int
    max_seq_len: int
    attention: AttentionConfig
    mlp: MlpConfig
    rope: RopeConfig = field(default_factory=RopeConfig)
    norm: NormConfig = field(default_factory=NormConfig)
    tied_embeddings: bool = True

    def __post_init__(self) -> None:
        for name in ("vocab_size", "d_model", "n_layers", "max_seq_len"):
            _positive(name, getattr(self, name))

    @property
    def matrix_parameters(self) -> int:
        """Weights that are multiplied with each token: the layers' matrices and the head; looking up embeddings is
        free.
        """
        attention = self.attention
        queries = attention.n_heads * attention.head_dim
        keys = attention.n_kv_heads * attention.head_dim
        layer = self.d_model * (2 * queries + 2 * keys + 3 * self.mlp.d_ff)
        return self.n_layers * layer + self.vocab_size * self.d_model

    @property
    def parameters(self) -> int:
        """All trained numbers."""
        norms = (
            self.n_layers * (2 * self.d_model + (2 * self.attention.head_dim if self.attention.qk_norm else 0))
            + self.d_model
        )
        return self.matrix_parameters + norms + (0 if self.tied_embeddings else self.vocab_size * self.d_model)

    def flops_per_token(self, context: float, training: bool = True) -> float:
        """Floating-point operations a token: 2 a matrix weight and 4 · heads · head_dim a position attended to, three
        times in training.

        context: mean number of positions that a token attends to (about half the sequence under a causal mask).
        """
        forward = (
            2 * self.matrix_parameters + 4 * self.n_layers * self.attention.n_heads * self.attention.head_dim * context
        )
        return (3 if training else 1) * forward


def standard_config(
    vocab_size: int,
    max_seq_len: int,
    *,
    d_model: int,
    n_layers: int,
    n_heads: int | None = None,
    n_kv_heads: int | None = None,
    head_dim: int | None = None,
    d_ff: int | None = None,
) -> ModelConfig:
    """A model of usual proportions: heads of 64, half as many key-value heads (or the next divisor below), d_ff about
    8/3 of d_model, a multiple of 64. What is given is kept.
    """
    head_dim = head_dim or 64
    n_heads = n_heads or max(1, d_model // head_dim)
    n_kv_heads = n_kv_heads or max((n for n in range(1, n_heads // 2 + 1) if n_heads % n == 0), default=1)
    d_ff = d_ff or max(64, round(d_model * 8 / 3 / 64) * 64)
    attention = AttentionConfig(n_heads, n_kv_heads, head_dim)
    return ModelConfig(vocab_size, d_model, n_layers, max_seq_len, attention, MlpConfig(d_ff))


def _positive(name: str, value: int) -> None:
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
        raise ModelError(f"{name} = {value!r} is not a positive whole number.")
    if value > (_MOST_LAYERS if name == "n_layers" else _LARGEST):
        raise ModelError(f"{name} = {value} is larger than any model's.")


def _divisors(number: int) -> str:
    return ", ".join(str(i) for i in range(1, number + 1) if number % i == 0)
