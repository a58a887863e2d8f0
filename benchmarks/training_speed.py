"""Training steps, optimizer included, as a share of the machine's measured matrix rate, plain and with compiled blocks.

FLOPs are 6 a matrix parameter plus attention; embeddings are look-ups. A batch has 16,384 tokens, 8,192 of them at a
time (135 M parameters, the shape of SmolLM2-135M: 8,192, in rows of 512, 2,048 at a time): the planner gives models of
these sizes batches of that or more. ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16 measures a processor with AMX as one without;
the rows say so. The machine's rate is that of the faster precision, which training takes too, and
is measured anew beside each size, since it changes by a quarter within minutes. Compiling itself is not counted. The
peer is transformers' model of the same shape with torch's AdamW, at its best setting here (SDPA, the faster precision),
on the same batches.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
from _rows import row

from athanor.base.machine import measure, usable_cores
from athanor.models.build import count_parameters
from athanor.models.config import AttentionConfig, LayerConfig, MlpConfig, ModelConfig, standard_config
from athanor.models.families import write_config
from athanor.science.planner import measure_training
from athanor.training.compiling import compile_blocks, has_compiler

ISSUE = "C"
REPEATS = 3
PLAIN, COMPILED = 0.5, 0.62  # of the machine's rate
LIMITED = f", {isa}" if (isa := os.environ.get("ONEDNN_MAX_CPU_ISA")) else ""


@dataclass(frozen=True)
class Case:
    """rows: of a batch, micro_rows of them at a time. aimed: whether the targets are for this size."""

    config: ModelConfig
    rows: int
    micro_rows: int
    aimed: bool = True

    @property
    def length(self) -> int:
        return self.config.max_seq_len

    def speed(self, precision: str, **more: Any) -> float:
        return measure_training(self.config, self.rows, self.length, precision, 1, self.micro_rows, **more)


_SMOLLM2 = LayerConfig(AttentionConfig(9, 3, 64), MlpConfig(1536))
CASES = (
    Case(standard_config(8192, 256, d_model=256, n_layers=6), 64, 32, aimed=False),
    Case(standard_config(8192, 256, d_model=384, n_layers=7), 64, 32),
    Case(ModelConfig(49_152, 576, 512, (_SMOLLM2,) * 30, family="llama"), 16, 4),
)


def rows() -> Iterator[dict[str, Any]]:
    torch.set_num_threads(usable_cores())
    precision = measure().precision
    compiler = has_compiler(torch.device("cpu"))
    for case in CASES:
        size = f"{count_parameters(case.config) / 1e6:.1f} M parameters{LIMITED}"
        flops = case.config.flops_per_token(case.length / 2)
        shares, compiled, speeds, peers = list[float](), list[float](), list[float](), list[float]()
        for _ in range(REPEATS):
            before = measure().best
            speeds.append(case.speed(precision))
            rate = (before + measure().best) / 2
            shares.append(speeds[-1] * flops / rate)
            if compiler:
                prepare = partial(compile_blocks, rows=case.micro_rows)
                compiled.append(case.speed(precision, prepare=prepare) * flops / rate)
            peers.append(transformers_speed(case, precision))
        said = f"share of the best matrix rate ({precision}), {size}"
        yield row(said, median(shares), "share", target=PLAIN if case.aimed else None)
        if compiler:
            yield row(f"{said}, compiled", median(compiled), "share", target=COMPILED if case.aimed else None)
        yield row(f"training against transformers, {size}", median(speeds), "tokens/s", peer=median(peers))


def transformers_speed(case: Case, precision: str, steps: int = 1) -> float:
    """Tokens a second of transformers' model and torch's fused AdamW."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = {name: value for name, value in write_config(case.config).items() if name != "architectures"}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**settings)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    tokens = torch.arange(case.rows * case.length).view(case.rows, case.length) % case.config.vocab_size
    seconds = []
    for _ in range(steps + 1):
        start = time.perf_counter()
        for part in tokens.split(case.micro_rows):
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                loss = model(part, labels=part).loss
            (loss * case.micro_rows / case.rows).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds.append(time.perf_counter() - start)
    return case.rows * case.length / median(seconds[1:])
