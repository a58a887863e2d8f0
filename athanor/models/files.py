"""Which files a model folder has, as Hugging Face lays it out; known without torch, so that they can be looked for and
fetched before a model is made.
"""

from __future__ import annotations

import re
from pathlib import Path

from athanor.base.errors import ModelError
from athanor.base.files import read_json

WEIGHTS, INDEX, NGRAMS = "model.safetensors", "model.safetensors.index.json", "ngrams.safetensors"
BESIDE = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
    "chat_template.json", "vocab.txt", "vocab.json", "merges.txt", "tokenizer.model", "spiece.model",
    "sentencepiece.bpe.model", "source.spm", "target.spm", "modules.json", "sentence_bert_config.json",
    "config_sentence_transformers.json", "1_Pooling/config.json", NGRAMS,
)  # fmt: skip
"""The tokenizer's files, those of sentence-transformers, and a memory's n-grams: they go with a model wherever it goes,
as they are.
"""


def shard_names(index: Path) -> list[str]:
    """The files that an index names; they lie beside it. Raises ModelError where they are no names of files."""
    found = read_json(index)
    names = found.get("weight_map") if isinstance(found, dict) else None
    if not isinstance(names, dict) or not all(_is_file_name(name) for name in names.values()):
        raise ModelError(f"{index} has no weight_map of file names.")
    return sorted(set(names.values()))


def _is_file_name(name: object) -> bool:
    return isinstance(name, str) and re.fullmatch(r"[\w.+=@-]{1,200}", name) is not None and name not in (".", "..")
