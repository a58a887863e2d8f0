"""What the tests of the engine ask of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from athanor.engine.engine import Engine
from athanor.engine.requests import Completion, Request
from athanor.engine.sampling import Sampling
from athanor.models.decoder import Decoder

STOPS = frozenset(range(0, 380, 150))


def requests(n: int, longest: int = 120, seed: int = 0) -> list[Request]:
    """Mixed prompts and settings; some share a long beginning."""
    rng = np.random.default_rng(seed)
    shared = rng.integers(0, 384, 60).tolist()
    made = []
    for i in range(n):
        own = rng.integers(0, 384, int(rng.integers(1, longest))).tolist()
        sampling = Sampling(
            temperature=float(rng.choice([0.0, 0.7, 1.3])),
            top_k=int(rng.choice([0, 20])),
            repetition_penalty=float(rng.choice([1.0, 1.2])),
            max_tokens=int(rng.integers(1, 100)),
            seed=i,
            n=int(rng.choice([1, 1, 1, 3])),
        )
        made.append(Request(shared + own if rng.random() < 0.5 else own, sampling, STOPS))
    return made


def tokens(completions: Sequence[Completion]) -> list[list[int]]:
    return [completion.tokens for completion in completions]


def alone(model: Decoder, some: Sequence[Request]) -> list[list[list[int]]]:
    return [tokens(Engine.of(model).generate([request])[0]) for request in some]
