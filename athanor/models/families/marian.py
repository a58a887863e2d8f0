"""Marian (Junczys-Dowmunt et al. 2018; the OPUS-MT models): the original Transformer of Vaswani et al. 2017, with a
bias of the logits.

Quirks: sines stand before cosines; positions have no limit here, though the file names one; sources and targets may
have vocabularies, and then tables, of their own; older files hold the sinusoids too.
"""

from __future__ import annotations

from typing import Any

from athanor.models.config import EmbeddingConfig, EncoderDecoderConfig
from athanor.models.families import bart
from athanor.models.families.family import Family
from athanor.models.families.keys import Keys


def _read(keys: Keys) -> EncoderDecoderConfig:
    keys.ignore("decoder_vocab_size", "share_encoder_decoder_embeddings", "tokenizer_class")
    return bart.read(keys, "marian", EmbeddingConfig(sinusoidal=True), start_id=58_100)


def _write(config: EncoderDecoderConfig) -> dict[str, Any]:
    tied = config.decoder.head is None or config.decoder.head.tied
    alike = config.encoder.vocab_size == config.decoder.vocab_size
    return bart.write(config) | {
        "static_position_embeddings": True,
        "decoder_vocab_size": config.decoder.vocab_size,
        "share_encoder_decoder_embeddings": config.shared_embedding or (alike and not tied),
    }


FAMILY = Family(
    "marian", ("MarianMTModel",), _read, _write, bart.rules, "model.",
    (*bart.UNUSED, r"model\.(encoder|decoder)\.embed_positions\.weight"),
)  # fmt: skip
