"""What a constraint costs: SmolLM2-135M-Instruct in int4 writes JSON by a schema, and free text, in turns.

200 tokens each, one stream and eight together. What the schema forces is written without being computed, so the second
pair of rows, an expression that allows every text, shows what drawing under a constraint costs by itself. A row's ratio
is the median over the turns; the target is that a schema takes at most 5 % of the speed.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from statistics import median
from typing import Any

import torch
from _rows import row

from athanor.base.machine import usable_cores
from athanor.engine.language_model import LanguageModel, load

ISSUE = "D"
TURNS, TOKENS, TARGET = 7, 200, 0.95
FILM = {
    "type": "object",
    "properties": {
        "title": {"type": "string"},
        "year": {"type": "integer"},
        "rating": {"type": "number"},
        "seen": {"type": "boolean"},
    },
    "required": ["title", "year", "rating", "seen"],
    "additionalProperties": False,
}
WANTED: dict[str, dict[str, Any]] = {
    "JSON by a schema": {"json_schema": {"type": "array", "items": FILM, "minItems": 30}},
    "any text, as an expression": {"regex": "(?s:.*)"},
}
ASKED = [{"role": "user", "content": "List films as JSON: title, year, rating, and whether I have seen them."}]


def rows() -> Iterator[dict[str, Any]]:
    torch.set_num_threads(usable_cores())
    lm = load("smollm2-135m-instruct", format="int4", speculate="off")
    for what, wanted in WANTED.items():
        for n in (1, 8):
            turns = [(_write(lm, n, wanted), _write(lm, n, {})) for _ in range(TURNS + 1)][1:]
            ratio = median(held / free for held, free in turns)
            speed, peer = (median(speeds) for speeds in zip(*turns, strict=True))
            target = TARGET if "schema" in what else None
            found = row(f"{what}, streams: {n}, against free text", speed, "tokens/s", target=target, peer=peer)
            yield {**found, "ratio": ratio, "met": None if target is None else ratio >= target}


def _write(lm: LanguageModel, n: int, wanted: dict[str, Any]) -> float:
    """Tokens a second of n answers together."""
    settings = {"max_tokens": TOKENS, "min_tokens": TOKENS, "seed": 1, "n": n, **wanted}
    start = time.perf_counter()
    said = lm.chat_many([ASKED], **settings)
    return sum(len(reply.tokens) for reply in said) / (time.perf_counter() - start)
