"""Walks through all that the kernels do, with the library that its argument names: run under a sanitizer."""

from __future__ import annotations

import sys
from itertools import product
from pathlib import Path

import numpy as np
import torch

from athanor.engine.native import library
from athanor.engine.native.drawing import Kernels
from athanor.engine.native.library import INSTRUCTIONS
from athanor.engine.rung import Segment
from athanor.models.config import AttentionConfig
from athanor.models.gguf.blocks import TAKEN
from athanor.training import kernels as training_kernels
from tests.engine.conftest import blocks_of
from tests.engine.test_native_rung import (
    CONFIGS,
    LENGTH,
    VARIANTS,
    config_of,
    random_model,
    rung_of,
    some_tokens,
    whole,
)  # fmt: skip


def main() -> None:
    opened = library.open_library(Path(sys.argv[1]))
    library.library = lambda: opened  # type: ignore[assignment]
    for name, config in CONFIGS.items():
        model = random_model(config)
        for form, more in VARIANTS:
            for instructions in INSTRUCTIONS[: opened.athanor_best() + 1]:
                rung = rung_of(model, form, **more, threads=3, instructions=instructions)
                tokens = some_tokens(1)
                rung.forward([whole(tokens, [5, 2, 9]), whole(tokens[:20], [0, 1], 3)])
                for i in range(3):
                    blocks = np.array([5, 2, 9])[: (LENGTH - 3 + i) // 16 + 1]
                    step = whole(tokens[-1:], list(blocks), 1)
                    rung.forward([type(step)(step.tokens, LENGTH - 3 + i, step.blocks, 1)])
        print(name, file=sys.stderr)
    model = random_model(config_of(AttentionConfig(4, 2, 16), d_model=64, d_ff=96))
    for kind in TAKEN:
        for wide in (False, True):
            for instructions in INSTRUCTIONS[: opened.athanor_best() + 1]:
                how = {"blocks": blocks_of(model, kind), "wide": wide, "threads": 3, "instructions": instructions}
                rung = rung_of(model, "bf16", **how)
                rung.forward([whole(some_tokens(1), [5, 2, 9]), whole(some_tokens(2, 20), [0, 1], 3)])
                rung.forward([Segment(some_tokens(3, 1), LENGTH, np.array([5, 2, 9]), 1)])
    random = np.random.default_rng(0)
    for level in range(opened.athanor_best() + 1):
        kernels = Kernels(opened, level)
        for size in (1, 100, 1000):
            logits = random.standard_normal((5, size)).astype(np.float32)
            for filters in ((1.0, 0, 1.0, 0.0), (0.7, 0, 0.95, 0.0), (0.7, 5, 0.5, 0.1)):
                kernels.logprobs(logits, kernels.draw(logits, *filters, random.random(5))[0])
        train(training_kernels.Kernels(opened, level))
    if opened.athanor_tiles():
        train(training_kernels.Kernels(opened, opened.athanor_best(), tiles=True))
    print("done")


def train(kernels: training_kernels.Kernels) -> None:
    """All that training does, forwards and backwards."""
    for dtype, (batch, time, heads, kv_heads, size) in product(
        (torch.float32, torch.bfloat16), ((2, 1, 1, 1, 16), (1, 37, 4, 2, 48), (2, 70, 2, 2, 112), (2, 70, 4, 2, 64))
    ):
        queries, gradient = (torch.randn(batch, time, heads, size).to(dtype) for _ in range(2))
        keys, values = (torch.randn(batch, time, kv_heads, size).to(dtype) for _ in range(2))
        first = (torch.arange(time) // 9 * 9).to(torch.int32).repeat(batch, 1)
        spans = first, (first + 8).clamp(max=time - 1)
        out, logsumexp = kernels.attend(queries, keys, values, spans, 0.1)
        kernels.attend_back(gradient, (queries, keys, values, *spans, out, logsumexp), 0.1)
        angles = torch.rand(batch, time, 1, 16)
        kernels.turn(
            kernels.turn(queries, angles, angles) if size > 16 else keys[..., :32].repeat(1, 1, 1, 2),
            angles,
            angles,
            True,
        )
        gain = torch.ones(size)
        normed, scale = kernels.norm(queries, gain, 1e-6, dtype)
        kernels.norm_back(normed, queries, gain, scale, queries)
        for again in (False, True):
            kernels.gate_back(gradient, queries, kernels.gate(queries, gradient), again)
        wide, rows = queries.float(), queries.flatten(0, 2)
        kernels.add(wide, queries)
        kernels.blend(wide, wide.clone(), torch.empty_like(wide), 0.9)
        kernels.move(wide, queries, torch.ones(len(rows), 1), 0.1, 0.1, cautious=True)
        kernels.squares(wide)
        if dtype == torch.bfloat16:
            kernels.transpose(kernels.transpose(rows).contiguous(), added_to=wide.view_as(rows))
        kernels.differentiate(
            torch.randn(time, size).to(dtype), torch.full((time, 2), size - 1), torch.ones(time, 2) / 2
        )


if __name__ == "__main__":
    main()
