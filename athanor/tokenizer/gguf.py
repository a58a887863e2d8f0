"""Tokenizers in GGUF metadata, as llama.cpp reads and writes them.

The metadata is a plain dict of the keys `tokenizer.*`; the file around it is the business of `models.gguf`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from athanor.base.errors import TokenizerError
from athanor.tokenizer.templates import CHAT_TEMPLATE
from athanor.tokenizer.tokenizer import Tokenizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # llama.cpp's token types


def to_gguf(tokenizer: Tokenizer, vocab_size: int | None = None) -> dict[str, Any]:
    """The metadata `tokenizer.*` of a GGUF file; values are str, int, float, bool and lists of them.

    vocab_size: rows of the model's embedding, where it has more of them than the tokenizer has ids.
    Raises TokenizerError when it has fewer.
    """
    tokens, types = _tokens(tokenizer.document, vocab_size or tokenizer.vocab_size)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": [" ".join(merge) for merge in tokenizer.document["model"]["merges"]],
        "tokenizer.ggml.bos_token_id": tokenizer.end_of_text_id,
        "tokenizer.ggml.eos_token_id": tokenizer.end_of_turn_id,
        "tokenizer.ggml.padding_token_id": tokenizer.pad_id,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": CHAT_TEMPLATE,
    }


def _tokens(document: Mapping[str, Any], vocab_size: int) -> tuple[list[str], list[int]]:
    """Every id's spelling and type; ids that nothing has are UNUSED."""
    vocabulary = {index: (token, NORMAL) for token, index in document["model"]["vocab"].items()}
    for added in document["added_tokens"]:
        vocabulary[added["id"]] = (added["content"], CONTROL if added["special"] else USER_DEFINED)
    if max(vocabulary) >= vocab_size:
        raise TokenizerError(f"The tokenizer has the id {max(vocabulary)}, the model only {vocab_size} ids.")
    every = [vocabulary.get(index, (f"[PAD{index}]", UNUSED)) for index in range(vocab_size)]
    return [token for token, _ in every], [kind for _, kind in every]
