"""What llama.cpp makes of a GGUF file, asked and answered as JSON: run by the Python of its own environment.

Asked: file; rows, ids whose logits are wanted, and logits, the file (.npy) that gets them; texts and conversations to
be cut into ids; prompts (ids) to be continued greedily by a count of tokens. Answered: texts, conversations, said.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
from llama_cpp import Llama
from llama_cpp.llama_chat_format import Jinja2ChatFormatter

_FP32 = 0  # of the cached keys and values, as ggml numbers it


def _conversation(model: Llama, messages: list[dict[str, str]]) -> list[int]:
    """The ids of a conversation by the file's own template, with the answer's turn opened."""
    start, end = (model.detokenize([token], special=True).decode() for token in (model.token_bos(), model.token_eos()))
    layout = Jinja2ChatFormatter(model.metadata["tokenizer.chat_template"], eos_token=end, bos_token=start)
    return model.tokenize(layout(messages=messages).prompt.encode(), add_bos=False, special=True)


def _continued(model: Llama, ids: list[int], count: int) -> list[int]:
    model.reset()
    model.eval(ids)
    said: list[int] = []
    for _ in range(count):
        said.append(int(np.argmax(model.scores[model.n_tokens - 1])))
        model.eval(said[-1:])
    return said


def answer(asked: dict[str, Any]) -> dict[str, Any]:
    model = Llama(
        asked["file"], n_ctx=512, n_batch=512, n_threads=1, logits_all=True, type_k=_FP32, type_v=_FP32, verbose=False
    )
    if "rows" in asked:
        model.eval(asked["rows"])
        np.save(asked["logits"], model.scores[: len(asked["rows"])])
    return {
        "texts": [model.tokenize(text.encode(), add_bos=False, special=False) for text in asked.get("texts", [])],
        "conversations": [_conversation(model, messages) for messages in asked.get("conversations", [])],
        "said": [_continued(model, ids, asked["count"]) for ids in asked.get("prompts", [])],
    }


if __name__ == "__main__":
    print(json.dumps(answer(json.load(sys.stdin))))
