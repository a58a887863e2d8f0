"""What a model is, as plain data: small frozen dataclasses that the modules are built from.

A model is an embedding, a tuple of layers, a final norm and a head. Every layer says for itself what its attention, its
feed-forward part and its norms are, so that models whose layers differ (sliding windows, dense layers before experts)
need nothing special. Sizes are checked here, once, so that an impossible model is refused with a sentence before any
memory is taken.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from athanor.base.errors import ModelError
from athanor.models.position_config import Disentangled, Position, RelativeBias, RopeConfig
from athanor.models.sizes import MOST_LAYERS, count, positive, positive_real, word

_MOST_EXPERTS = 1 << 16  # beyond it a file is damaged or hostile
_MOST_NGRAMS = 16  # tokens of a context; longer ones are hardly ever seen twice

Activation = Literal["silu", "gelu", "gelu_tanh", "relu", "relu_squared", "quick_gelu", "tanh"]
NormKind = Literal["rms", "layer"]
QkNorm = Literal["head", "each", "projection"]
Scores = Literal["softmax", "sigmoid"]


@dataclass(frozen=True)
class NormConfig:
    """RMSNorm (Zhang and Sennrich 2019) or layer norm (Ba et al. 2016). offset: added to the gain, 1 for Gemma."""

    epsilon: float = 1e-6
    kind: NormKind = "rms"
    bias: bool = False
    offset: float = 0.0

    def __post_init__(self) -> None:
        word("norm kind", self.kind, NormKind)
        if self.epsilon != 0:
            positive_real("norm epsilon", self.epsilon)
        if self.bias and self.kind == "rms":
            raise ModelError("RMSNorm has no bias.")


@dataclass(frozen=True)
class AttentionConfig:
    """Grouped-query attention: `n_heads` query heads share `n_kv_heads` key-value heads of size `head_dim`.

    qk_norm: of queries and keys, by the layer's kind of norm without a bias: a "head" at a time with one gain for all,
    with gains for "each" (StableLM 2 12B), or over the whole "projection". scale: of the scores, None
    for 1/√head_dim. soft_cap: scores are bent by tanh below it (Gemma 2). window: keys further back are not seen.
    """

    n_heads: int
    n_kv_heads: int
    head_dim: int
    position: Position = field(default_factory=RopeConfig)
    qk_norm: QkNorm | None = None
    bias: bool = False
    output_bias: bool = False
    scale: float | None = None
    soft_cap: float | None = None
    window: int | None = None

    def __post_init__(self) -> None:
        for name in ("n_heads", "n_kv_heads", "head_dim"):
            positive(name, getattr(self, name))
        if self.qk_norm is not None:
            word("qk_norm", self.qk_norm, QkNorm)
        if self.n_heads % self.n_kv_heads:
            raise ModelError(
                f"n_heads = {self.n_heads} is not a multiple of n_kv_heads = {self.n_kv_heads}.",
                f"Choose n_kv_heads among {_divisors(self.n_heads)}.",
            )
        if isinstance(self.position, RopeConfig):
            self.position.check(self.rotary_dim, self.head_dim)
        if isinstance(self.position, Disentangled) and self.n_kv_heads != self.n_heads:
            raise ModelError(f"Disentangled attention has a key head for each of its {self.n_heads} query heads.")
        if self.window is not None:
            positive("sliding_window", self.window)
        for name in ("scale", "soft_cap"):
            if getattr(self, name) is not None:
                positive_real(f"attention: {name}", getattr(self, name))

    @property
    def rotary_dim(self) -> int:
        """How much of each head is turned."""
        return int(self.head_dim * self.position.share) if isinstance(self.position, RopeConfig) else 0

    @property
    def key_dim(self) -> int:
        """Of a cached key head."""
        return self.head_dim

    @property
    def value_dim(self) -> int:
        """Of a cached value head."""
        return self.head_dim

    def matrix_parameters(self, d_model: int) -> int:
        return d_model * self.head_dim * 2 * (self.n_heads + self.n_kv_heads)

    @property
    def score_width(self) -> int:
        """Multiplications a position attended to: for its score, and for its share of the value."""
        return 2 * self.n_heads * self.head_dim


@dataclass(frozen=True)
class LatentAttentionConfig:
    """Multi-head latent attention (DeepSeek-V2, 2024): keys and values come from one narrow vector of `kv_rank`; a part
    of each key carries the position and is shared by all heads. q_rank None: queries come straight from the input.
    norm: of the narrow vectors.
    """

    n_heads: int
    kv_rank: int
    plain_dim: int
    rotary_dim: int
    value_dim: int
    position: RopeConfig = field(default_factory=RopeConfig)
    q_rank: int | None = None
    bias: bool = False
    scale: float | None = None
    window: int | None = None
    norm: NormConfig = field(default_factory=NormConfig)

    def __post_init__(self) -> None:
        for name in ("n_heads", "kv_rank", "plain_dim", "rotary_dim", "value_dim"):
            positive(name, getattr(self, name))
        if self.q_rank is not None:
            positive("q_rank", self.q_rank)
        if self.scale is not None:
            positive_real("attention: scale", self.scale)
        self.position.check(self.rotary_dim, self.key_dim)

    @property
    def n_kv_heads(self) -> int:
        return self.n_heads

    @property
    def key_dim(self) -> int:
        return self.plain_dim + self.rotary_dim

    def matrix_parameters(self, d_model: int) -> int:
        queries = self.n_heads * self.key_dim
        into = d_model * queries if self.q_rank is None else self.q_rank * (d_model + queries)
        keys = d_model * (self.kv_rank + self.rotary_dim)
        return (
            into + keys + self.n_heads * (self.kv_rank * (self.plain_dim + self.value_dim) + self.value_dim * d_model)
        )

    @property
    def score_width(self) -> int:
        return self.n_heads * (self.key_dim + self.value_dim)


@dataclass(frozen=True)
class MlpConfig:
    """down(activation(up(x))), or gated (Shazeer 2020): down(activation(gate(x)) · up(x)); inner width `d_ff`."""

    d_ff: int
    activation: Activation = "silu"
    gated: bool = True
    bias: bool = False

    def __post_init__(self) -> None:
        positive("d_ff", self.d_ff)
        word("activation", self.activation, Activation)

    def matrix_parameters(self, d_model: int) -> int:
        """That a token is multiplied with."""
        return (3 if self.gated else 2) * d_model * self.d_ff

    def all_matrix_parameters(self, d_model: int) -> int:
        return self.matrix_parameters(d_model)


@dataclass(frozen=True)
class MoeConfig:
    """A router sends each token to `top_k` of `n_experts` (Shazeer et al. 2017).

    expert: each of them. shared: one that sees every token (DeepSeekMoE). scores: how the router's logits become
    weights. normalise: the chosen weights sum to one. groups, top_groups: experts are first chosen by group.
    correction: a bias that balances the choice and is not part of the weight (DeepSeek-V3). scale: of the routed sum.
    capacity: tokens of one text that an expert takes in a forward pass, the first ones; to later ones it adds nothing
    (Switch Transformer, Fedus et al. 2022).
    """

    n_experts: int
    top_k: int
    expert: MlpConfig
    shared: MlpConfig | None = None
    scores: Scores = "softmax"
    normalise: bool = True
    groups: int = 1
    top_groups: int = 1
    correction: bool = False
    scale: float = 1.0
    capacity: int | None = None

    def __post_init__(self) -> None:
        for name in ("n_experts", "top_k", "groups", "top_groups"):
            positive(name, getattr(self, name))
        word("scores", self.scores, Scores)
        if self.capacity is not None:
            positive("expert_capacity", self.capacity)
        if self.n_experts > _MOST_EXPERTS:
            raise ModelError(f"n_experts = {self.n_experts} is larger than any model's.")
        if self.top_k > self.n_experts:
            raise ModelError(f"top_k = {self.top_k} exceeds n_experts = {self.n_experts}.")
        if self.n_experts % self.groups or self.top_groups > self.groups:
            raise ModelError(
                f"{self.n_experts} experts cannot be chosen from {self.top_groups} of {self.groups} groups."
            )
        each = self.n_experts // self.groups
        if self.groups > 1 and (each < 2 or self.top_k > self.top_groups * each):
            raise ModelError(f"{self.top_k} experts cannot be chosen from {self.top_groups} groups of {each}.")
        positive_real("scale of the routed experts", self.scale)

    @property
    def gated(self) -> bool:
        return self.expert.gated

    def matrix_parameters(self, d_model: int) -> int:
        """That a token is multiplied with: the router, the chosen experts, the shared one."""
        shared = self.shared.matrix_parameters(d_model) if self.shared else 0
        return d_model * self.n_experts + self.top_k * self.expert.matrix_parameters(d_model) + shared

    def all_matrix_parameters(self, d_model: int) -> int:
        more = (self.n_experts - self.top_k) * self.expert.matrix_parameters(d_model)
        return self.matrix_parameters(d_model) + more


@dataclass(frozen=True)
class ConvolutionConfig:
    """A convolution over what a layer is given, added to what it gives and normed with it (DeBERTa v2). kernel: tokens
    that each sees, itself in the middle. groups: channels are mixed within each of so many.
    """

    kernel: int
    activation: Activation = "tanh"
    groups: int = 1

    def __post_init__(self) -> None:
        word("activation", self.activation, Activation)
        positive("conv_kernel_size", self.kernel)
        positive("conv_groups", self.groups)
        if self.kernel % 2 == 0:
            raise ModelError(f"conv_kernel_size = {self.kernel} has no middle.", "Choose an odd number.")

    def matrix_parameters(self, d_model: int) -> int:
        return self.kernel * d_model * d_model // self.groups


Placement = Literal["pre", "post", "sandwich", "after", "parallel", "parallel_shared"]


@dataclass(frozen=True)
class LayerConfig:
    """One block. placement: where its norms stand.

    pre: x + f(norm(x)) (GPT-2, Llama). post: norm(x + f(x)) (the original Transformer, BERT). sandwich: x +
    norm(f(norm(x))) (Gemma 2). after: x + norm(f(x)) (OLMo 2). parallel: x + attention(norm(x)) + mlp(norm'(x))
    (GPT-NeoX); parallel_shared: with one norm for both (Falcon 7B). cross_attention: to an encoder's states.
    attention_norm: False where attention has none, because its input is normed already (ModernBERT's first layer).
    residual_scale: of what each part adds (Granite). convolution: beside the whole layer.
    """

    attention: AttentionConfig | LatentAttentionConfig
    mlp: MlpConfig | MoeConfig
    norm: NormConfig = field(default_factory=NormConfig)
    placement: Placement = "pre"
    cross_attention: AttentionConfig | None = None
    attention_norm: bool = True
    residual_scale: float = 1.0
    convolution: ConvolutionConfig | None = None

    def __post_init__(self) -> None:
        word("placement", self.placement, Placement)
        positive_real("residual scale", self.residual_scale)
        if self.convolution is not None and self.placement != "post":
            raise ModelError(f"A convolution stands beside post-norm layers, not beside {self.placement} ones.")
        if self.cross_attention is not None and self.placement not in ("pre", "post"):
            raise ModelError(f"Cross-attention stands in pre- or post-norm layers, not in {self.placement} ones.")


@dataclass(frozen=True)
class EmbeddingConfig:
    """From ids to states.

    size: of a token's vector where it is not d_model; a matrix then widens it, after positions and norm (ALBERT) or
    before them (widen_first, OPT). scale: it is multiplied with. positions: rows of a learned table of positions, 0 for
    none; position_offset: where the first stands in it (OPT, RoBERTa); positions_from_text: padding on the left does
    not count; padding_id: this token does not count wherever it stands, and is itself placed before the first
    (RoBERTa). sinusoidal: fixed sines and cosines instead (Vaswani et al. 2017); sinusoids_to_end: the slowest turns
    10,000 times as slowly as the first (tensor2tensor, fairseq), and not the one that would follow it. token_types:
    rows of a table of segments. norm: of the sum. ngrams: tokens of the longest context that an `NGramMemory` looks up,
    0 for none.
    """

    size: int | None = None
    widen_bias: bool = True
    widen_first: bool = False
    scale: float = 1.0
    positions: int = 0
    position_offset: int = 0
    positions_from_text: bool = False
    padding_id: int | None = None
    sinusoidal: bool = False
    sinusoids_to_end: bool = False
    token_types: int = 0
    norm: NormConfig | None = None
    ngrams: int = 0

    def __post_init__(self) -> None:
        if self.size is not None:
            positive("embedding size", self.size)
        for name in ("positions", "position_offset", "token_types", "ngrams"):
            count(name, getattr(self, name))
        if self.ngrams > _MOST_NGRAMS:
            raise ModelError(f"ngrams = {self.ngrams} is above {_MOST_NGRAMS}.")
        if self.ngrams and (self.size or self.scale != 1):
            raise ModelError("An n-gram memory needs plain embeddings, of the size of the states and not scaled.")
        if self.padding_id is not None:
            count("pad_token_id", self.padding_id)
        positive_real("scale of the embedding", self.scale)


@dataclass(frozen=True)
class HeadConfig:
    """From states to logits. tied: the matrix is the embedding's. transform: a dense layer, activation and norm before
    it (BERT), the dense layer with or without transform_bias, the norm only with transform_norm. outputs: so many
    logits a token instead of one for each in the vocabulary (ELECTRA's discriminator). narrow: a matrix to the
    embedding's size (OPT). scale: of the logits. soft_cap: they are bent by tanh below it.
    """

    tied: bool = True
    bias: bool = False
    transform: Activation | None = None
    transform_bias: bool = True
    transform_norm: bool = True
    outputs: int | None = None
    narrow: bool = False
    scale: float = 1.0
    soft_cap: float | None = None

    def __post_init__(self) -> None:
        if self.transform is not None:
            word("transform", self.transform, Activation)
        if self.outputs is not None:
            positive("outputs", self.outputs)
            if self.tied:
                raise ModelError("A head with outputs of its own cannot share the embedding's matrix.")
        positive_real("scale of the logits", self.scale)
        if self.soft_cap is not None:
            positive_real("final_logit_softcapping", self.soft_cap)


@dataclass(frozen=True)
class ClassifierConfig:
    """One logit a class, from the first token's state through the pooler. labels: the names of the classes.
    activation: between the pooler's matrix and the classes': tanh in BERT and RoBERTa, gelu in ELECTRA.
    """

    labels: tuple[str, ...]
    activation: Activation = "tanh"

    def __post_init__(self) -> None:
        word("activation", self.activation, Activation)
        if not self.labels or len(set(self.labels)) < len(self.labels):
            raise ModelError("A classifier needs at least one label, and none of them twice.")


@dataclass(frozen=True)
class ModelConfig:
    """A decoder or an encoder; an `EncoderDecoderConfig` has one of each.

    norm: after the last layer, None for models whose layers end in a norm. causal: tokens see only earlier ones.
    pooler: a dense layer on the first token's state; next_sentence: two logits from it (BERT); classifier: as many as
    there are classes. sharing: for each layer
    the number of the block whose weights it has (ALBERT), None where each has its own. family: the name in `families`
    under which it is saved.
    """

    vocab_size: int
    d_model: int
    max_seq_len: int
    layers: tuple[LayerConfig, ...]
    embedding: EmbeddingConfig = field(default_factory=EmbeddingConfig)
    norm: NormConfig | None = field(default_factory=NormConfig)
    head: HeadConfig | None = field(default_factory=HeadConfig)
    causal: bool = True
    pooler: bool = False
    next_sentence: bool = False
    classifier: ClassifierConfig | None = None
    sharing: tuple[int, ...] | None = None
    family: str = "qwen3"

    def __post_init__(self) -> None:
        for name in ("vocab_size", "d_model", "max_seq_len"):
            positive(name, getattr(self, name))
        if not 0 < len(self.layers) <= MOST_LAYERS:
            raise ModelError(f"n_layers = {len(self.layers)} is not between 1 and {MOST_LAYERS}.")
        if self.sharing is not None and (
            len(self.sharing) != self.n_layers or set(self.sharing) != set(range(self.n_blocks))
        ):
            raise ModelError(f"{self.n_layers} layers cannot share the weights of blocks as {self.sharing} says.")
        first = self.layers[0].attention.position
        if self.classifier is not None and (self.causal or not self.pooler):
            raise ModelError("A classifier reads an encoder's pooler.", "Set pooler=True in its configuration.")
        for layer in self.layers:
            position = layer.attention.position
            if position != first and any(isinstance(one, RelativeBias | Disentangled) for one in (position, first)):
                raise ModelError("The layers share one table of distances, so all of them need the same.")
            if layer.convolution is not None and self.causal:
                raise ModelError("A convolution sees later tokens: only an encoder's layers can have it.")
            if layer.convolution is not None and self.d_model % layer.convolution.groups:
                raise ModelError(f"d_model = {self.d_model} is not a multiple of conv_groups.")
        if self.embedding.ngrams and not self.causal:
            raise ModelError("An n-gram memory says what follows: only a decoder can have it.")
        width = self.embedding.size or self.d_model
        if self.embedding.sinusoidal and width % 2:
            raise ModelError(f"Sines and cosines come in pairs: the embedding's size, {width}, is odd.")

    @property
    def n_layers(self) -> int:
        return len(self.layers)

    @property
    def n_blocks(self) -> int:
        """Layers with weights of their own."""
        return self.n_layers if self.sharing is None else max(self.sharing, default=-1) + 1

    @property
    def matrix_parameters(self) -> int:
        """Weights that are multiplied with each token: the layers' matrices and the head; looking up embeddings is
        free.
        """
        total = 0
        if self.head:
            size = self.d_model if self.head.outputs else self.embedding.size or self.d_model
            total += (self.head.outputs or self.vocab_size) * size
        if self.embedding.size:
            total += self.embedding.size * self.d_model
        for layer in self.layers:
            total += layer.attention.matrix_parameters(self.d_model) + layer.mlp.matrix_parameters(self.d_model)
            for part in (layer.cross_attention, layer.convolution):
                total += part.matrix_parameters(self.d_model) if part else 0
        return total

    def flops_per_token(self, context: float, training: bool = True) -> float:
        """Floating-point operations a token: 2 a matrix weight and 2 a multiplication for each position attended to,
        three times in training.

        context: mean number of positions that a token attends to (about half the sequence under a causal mask).
        """
        attention = 0.0
        for layer in self.layers:
            attention += layer.attention.score_width * min(context, layer.attention.window or context)
        return (3 if training else 1) * 2 * (self.matrix_parameters + attention)


@dataclass(frozen=True)
class EncoderDecoderConfig:
    """start_id: the token that a decoder's input begins with. shared_embedding: both sides have one table of tokens;
    tables of positions and norms of the embedding are their own.
    """

    encoder: ModelConfig
    decoder: ModelConfig
    start_id: int
    shared_embedding: bool = True
    family: str = "t5"

    def __post_init__(self) -> None:
        count("decoder_start_token_id", self.start_id)
        if self.start_id >= self.vocab_size:
            raise ModelError(
                f"decoder_start_token_id = {self.start_id} is not among the {self.vocab_size} tokens of the vocabulary."
            )

    @property
    def vocab_size(self) -> int:
        return self.decoder.vocab_size

    @property
    def d_model(self) -> int:
        return self.decoder.d_model


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
    ngrams: int | None = None,
) -> ModelConfig:
    """A decoder of the Qwen3 shape and usual proportions: heads of 64, half as many key-value heads (or the next
    divisor below), d_ff about 8/3 of d_model, a multiple of 64. What is given is kept. With ngrams it is a family of
    its own, which no other program reads.
    """
    positive("n_layers", n_layers)
    head_dim = head_dim or 64
    n_heads = n_heads or max(1, d_model // head_dim)
    n_kv_heads = n_kv_heads or max((n for n in range(1, n_heads // 2 + 1) if n_heads % n == 0), default=1)
    d_ff = d_ff or max(64, round(d_model * 8 / 3 / 64) * 64)
    layer = LayerConfig(AttentionConfig(n_heads, n_kv_heads, head_dim, qk_norm="head"), MlpConfig(d_ff))
    config = ModelConfig(vocab_size, d_model, max_seq_len, (layer,) * n_layers)
    return replace(config, embedding=EmbeddingConfig(ngrams=ngrams), family="qwen3_ngrams") if ngrams else config


def _divisors(number: int) -> str:
    return ", ".join(str(i) for i in range(1, min(number, 1024) + 1) if number % i == 0)
