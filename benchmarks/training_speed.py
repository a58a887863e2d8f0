"""Training steps, optimizer included, as a share of the machine's measured matrix rate, without a compiler.

FLOPs are 6 a matrix parameter plus attention; embeddings are look-ups. A batch has 16,384 tokens, 4,096 of them at a
time: the planner gives models of these sizes batches of that or more. The machine's rate is measured anew beside each
size, since it changes by a quarter within minutes. The peer is transformers' Qwen3 of the same shape with torch's
AdamW, at its best setting here (SDPA, the faster precision), on the same batches.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from statistics import median
from typing import Any

import torch
from _rows import row

from athanor.base.machine import measure, usable_cores
from athanor.models.build import count_parameters
from athanor.models.config import ModelConfig, standard_config
from athanor.models.families import write_config
from athanor.science.planner import measure_training

ISSUE = "A"
ROWS, MICRO_ROWS, LENGTH, REPEATS = 64, 16, 256, 3
SIZES = ((256, 6, 0.33), (384, 6, 0.45), (512, 8, 0.45))


def rows() -> Iterator[dict[str, Any]]:
    torch.set_num_threads(usable_cores())
    precision = measure().precision
    for d_model, n_layers, target in SIZES:
        config = standard_config(8192, LENGTH, d_model=d_model, n_layers=n_layers)
        size = f"{count_parameters(config) / 1e6:.1f} M parameters"
        flops = config.flops_per_token(LENGTH / 2)
        shares, speeds, peers = [], [], []
        for _ in range(REPEATS):
            before = measure().best
            speeds.append(measure_training(config, ROWS, LENGTH, precision, 1, MICRO_ROWS))
            shares.append(speeds[-1] * flops / ((before + measure().best) / 2))
            peers.append(transformers_speed(config, precision))
        yield row(f"share of the best matrix rate ({precision}), {size}", median(shares), "share", target=target)
        yield row(f"training against transformers, {size}", median(speeds), "tokens/s", peer=median(peers))
        small = {name: measure_training(config, MICRO_ROWS, LENGTH, name) for name in ("fp32", "bf16")}
        yield row(f"the chosen precision against fp32, {size}", small[precision], "tokens/s", peer=small["fp32"])


def transformers_speed(config: ModelConfig, precision: str, steps: int = 1) -> float:
    """Tokens a second of transformers' model and torch's fused AdamW."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    from transformers import Qwen3Config, Qwen3ForCausalLM

    settings = {k: v for k, v in write_config(config).items() if k not in ("architectures", "model_type")}
    model = Qwen3ForCausalLM(Qwen3Config(**settings)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    tokens = torch.arange(ROWS * LENGTH).view(ROWS, LENGTH) % config.vocab_size
    seconds = []
    for _ in range(steps + 1):
        start = time.perf_counter()
        for part in tokens.split(MICRO_ROWS):
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                loss = model(part, labels=part).loss
            (loss * MICRO_ROWS / ROWS).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds.append(time.perf_counter() - start)
    return ROWS * LENGTH / median(seconds[1:])
