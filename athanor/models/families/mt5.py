"""mT5 (Xue et al. 2021): T5 1.1 over a hundred languages, with a gated GELU.

Quirks: logits are never scaled, whether the head is tied or not; transformers from 5 on writes that it is tied, though
the released models have a head of their own and say so.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from athanor.models.config import EncoderDecoderConfig, HeadConfig
from athanor.models.families import t5
from athanor.models.families.family import Family
from athanor.models.families.keys import Keys


def _read(keys: Keys) -> EncoderDecoderConfig:
    keys.settings.setdefault("feed_forward_proj", "gated-gelu")
    config = t5.read(keys, "mt5")
    head = HeadConfig(tied=keys.flag("tie_word_embeddings", True))
    return replace(config, decoder=replace(config.decoder, head=head))


def _write(config: EncoderDecoderConfig) -> dict[str, Any]:
    written = t5.write(config)
    del written["scale_decoder_outputs"]
    return written


FAMILY = Family("mt5", ("MT5ForConditionalGeneration",), _read, _write, t5.rules, "", t5.UNUSED)
