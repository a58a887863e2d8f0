"""A tokenizer and texts for the objectives: sentences about animals that a tiny network can learn from."""

from __future__ import annotations

from functools import cache

import numpy as np

from athanor.base.randomness import generator
from athanor.models.config import (
    AttentionConfig,
    EmbeddingConfig,
    EncoderDecoderConfig,
    HeadConfig,
    LayerConfig,
    MlpConfig,
    ModelConfig,
    MoeConfig,
    NormConfig,
)
from athanor.models.position_config import RelativeBias
from athanor.tokenizer import Tokenizer, train_tokenizer
from athanor.training.drawn import SpecialTokens

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
_ANIMALS = ("elephant", "crocodile", "butterfly", "kangaroo")
_WHAT = {"elephant": "remembers", "crocodile": "swallows", "butterfly": "visits", "kangaroo": "carries"}
_WHOM = {"remembers": "everybody", "swallows": "fishermen", "visits": "flowers", "carries": "children"}


@cache
def text(number: int) -> str:
    """One animal, again and again: so what follows belongs to what was before."""
    random = generator(5, "text", number)
    animal = _ANIMALS[number % len(_ANIMALS)]
    what = _WHAT[animal]
    day = ("today", "tomorrow", "always")
    sentences = (f"The {animal} {what} {_WHOM[what]} {day[random.integers(3)]}." for _ in range(random.integers(3, 8)))
    return " ".join(sentences)


@cache
def make_tokenizer() -> Tokenizer:
    return train_tokenizer((text(number) for number in range(40)), 512)


@cache
def special() -> SpecialTokens:
    return SpecialTokens.of(make_tokenizer())


@cache
def shards(documents: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and offsets, as a folder of shards holds them."""
    tokenizer = make_tokenizer()
    ids = [np.array([*tokenizer.encode(text(n)), tokenizer.end_of_text_id]) for n in range(documents)]
    return np.concatenate(ids).astype(np.uint16), np.concatenate([[0], np.cumsum([len(one) for one in ids])])


def unigram_nats(targets: np.ndarray) -> float:
    """The entropy of the targets' own frequencies: what a model that ignores its input reaches at best."""
    shares = np.unique(targets, return_counts=True)[1] / len(targets)
    return float(-(shares * np.log(shares)).sum())


def encoder_config(**options: object) -> ModelConfig:
    """A small BERT."""
    norm = NormConfig(1e-12, "layer", True)
    attention = AttentionConfig(2, 2, 16, None, bias=True, output_bias=True)
    layer = LayerConfig(attention, MlpConfig(64, "gelu", False, True), norm, "post")
    settings = {
        "embedding": EmbeddingConfig(positions=64, token_types=2, norm=norm),
        "head": HeadConfig(bias=True, transform="gelu"),
        "family": "bert",
        **options,
    }
    return ModelConfig(512, 32, 64, (layer,) * 2, norm=None, causal=False, **settings)  # type: ignore[arg-type]


def t5_config() -> EncoderDecoderConfig:
    attention = AttentionConfig(2, 2, 16, RelativeBias(), scale=1.0)
    layer = LayerConfig(attention, MlpConfig(64, "relu", False))
    encoder = ModelConfig(512, 32, 64, (layer,) * 2, head=None, causal=False)
    reading = LayerConfig(attention, layer.mlp, cross_attention=AttentionConfig(2, 2, 16, None, scale=1.0))
    decoder = ModelConfig(512, 32, 64, (reading,) * 2, head=HeadConfig(scale=32**-0.5))
    return EncoderDecoderConfig(encoder, decoder, make_tokenizer().end_of_text_id)


def decoder_config(moe: MoeConfig | None = None) -> ModelConfig:
    layer = LayerConfig(AttentionConfig(2, 1, 16, qk_norm="head"), moe or MlpConfig(64))
    return ModelConfig(512, 32, 64, (layer,) * 2)
