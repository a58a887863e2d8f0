"""M2M-100 (Fan et al. 2021) and the dense NLLB models (Costa-jussà et al. 2022): BART with pre-norms, a last norm on
each side, and sinusoids for positions.

Quirks: the first position is the padding's id + 1, and padding has none, so that positions count what is no padding;
that is what the mask hides here, and what has the padding's id in transformers. The slowest sinusoid turns 10,000 times
as slowly as the first. Logits have no bias.
"""

from __future__ import annotations

from typing import Any

from athanor.base.errors import ModelError
from athanor.models.config import EmbeddingConfig, EncoderDecoderConfig
from athanor.models.families import bart
from athanor.models.families.family import Family
from athanor.models.families.keys import Keys


def _read(keys: Keys) -> EncoderDecoderConfig:
    padding = keys.whole("pad_token_id", 1)
    embedding = EmbeddingConfig(
        position_offset=padding + 1, positions_from_text=True, sinusoidal=True, sinusoids_to_end=True
    )
    config = bart.read(keys, "m2m_100", embedding, "pre", "relu", scaled=True, head_bias=False)
    if config.start_id == padding:
        raise ModelError(
            f"{keys.place}: decoder_start_token_id = pad_token_id = {padding}.",
            "Padding has no position in this family, so a target cannot begin with it.",
        )
    return config


def _write(config: EncoderDecoderConfig) -> dict[str, Any]:
    return bart.write(config) | {"pad_token_id": config.encoder.embedding.position_offset - 1}


FAMILY = Family(
    "m2m_100", ("M2M100ForConditionalGeneration",), _read, _write, bart.rules, "model.",
    (*bart.UNUSED, r"model\.(encoder|decoder)\.embed_positions\.weights?"),
)  # fmt: skip
