"""What Muon costs: the share of the optimizer's step in a training step of 8,192 tokens, and the share of its products
in all of the step's FLOPs.

Both times are medians of the same steps, so that a machine that changes speed does so for both.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from statistics import median
from typing import Any

import torch
from _rows import row

from athanor.base.machine import measure, usable_cores
from athanor.models.build import build, count_parameters
from athanor.models.config import ModelConfig, standard_config
from athanor.models.precision import autocast
from athanor.training.batches import Batch
from athanor.training.kernel_layers import use_kernels
from athanor.training.muon import Muon
from athanor.training.objectives import next_token
from athanor.training.optimizers import OptimizerConfig, clip_gradients, make_optimizer

ISSUE = "C"
ROWS, LENGTH, STEPS = 32, 256, 8
SIZES = ((256, 6), (384, 6), (512, 8))
MOST = 0.10
WARM_UP = 4  # steps, in which the heap grows


def rows() -> Iterator[dict[str, Any]]:
    torch.set_num_threads(usable_cores())
    precision = measure().precision
    for d_model, n_layers in SIZES:
        config = standard_config(8192, LENGTH, d_model=d_model, n_layers=n_layers)
        size = f"{count_parameters(config) / 1e6:.1f} M parameters"
        whole, optimizer = measured(config, precision)
        yield row(
            f"optimizer's share of a step of 8K tokens, {size}", optimizer / whole, "share", target=MOST, most=True
        )
        flops = ROWS * LENGTH * config.flops_per_token(LENGTH / 2)
        yield row(f"its products' share of the FLOPs, {size}", muon_flops(config, precision) / flops, "share")


def measured(config: ModelConfig, precision: str) -> tuple[float, float]:
    """Seconds of a step, and of the optimizer in it: medians."""
    model = build(config, seed=0)
    use_kernels(model)
    optimizer = make_optimizer(model, OptimizerConfig(products="bf16" if precision == "bf16" else "fp32"))
    random = torch.Generator().manual_seed(0)
    tokens = torch.randint(config.vocab_size, (ROWS, LENGTH), generator=random)
    batch = Batch(tokens, tokens.roll(-1, 1), torch.zeros_like(tokens), torch.arange(LENGTH).expand(ROWS, LENGTH))
    whole, own = [], []
    for number in range(1, WARM_UP + STEPS + 1):
        start = time.perf_counter()
        with autocast(precision):
            loss = next_token(model, batch)
        (loss.sum / batch.n_targets).backward()
        clip_gradients(model.parameters(), 1.0)
        before = time.perf_counter()
        optimizer.step(number, 1e-3)
        own.append(time.perf_counter() - before)
        model.zero_grad(set_to_none=True)
        whole.append(time.perf_counter() - start)
    return median(whole[WARM_UP:]), median(own[WARM_UP:])


def muon_flops(config: ModelConfig, precision: str) -> float:
    """Of one step's orthogonalisations."""
    gram, whole = (5, 10) if precision == "bf16" else (12, 2)  # products of Gram matrices, and as wide as the matrix
    muon = make_optimizer(build(config, 0), OptimizerConfig()).rules[0]
    assert isinstance(muon, Muon)
    total = 0.0
    for (height, width), stack in muon.stacks.items():
        small, large = sorted((height, width))
        total += len(stack.momentum) * 2 * (gram * small**3 + whole * small**2 * large)
    return total
