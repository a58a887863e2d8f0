"""From a time and a machine to a model: which size ends with the fewest bits per byte?

A model that is too small cannot use the tokens, one that is too large sees too few of them. The planner measures how
fast training steps really are on this machine for a small and a large model, interpolates for the sizes between, and
takes the size whose predicted loss is lowest under a law of the form L(N, D) = E + A / N^α + B / D^β (Hoffmann et al.
2022), with constants set by runs of this recipe on the default corpus (docs/lab.md). Repeated text counts for less than
new text (Muennighoff et al. 2023).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from athanor.base.machine import finish
from athanor.models.build import build, count_parameters
from athanor.models.config import MlpConfig, ModelConfig, standard_config
from athanor.models.decoder import Decoder
from athanor.models.precision import autocast
from athanor.training.acceleration import accelerate
from athanor.training.batches import Batch
from athanor.training.objectives import next_token
from athanor.training.optimizers import OptimizerConfig, clip_gradients, make_optimizer
from athanor.training.parallel import ALONE
from athanor.training.recompute import Recompute

# d_model and n_layers: all sizes are multiples of 64, so that every quantised format fits.
LADDER = (
    (128, 4), (192, 4), (256, 4), (256, 6), (320, 6), (384, 6), (384, 8), (512, 8), (512, 10), (640, 10), (768, 12),
    (896, 14), (1024, 16), (1280, 20), (1536, 24),
)  # fmt: skip


@dataclass(frozen=True)
class Law:
    """Bits per byte = floor + a / N^alpha + b / D^beta; N matrix parameters inside the blocks, D tokens."""

    floor: float
    a: float
    alpha: float
    b: float
    beta: float

    def bits_per_byte(self, parameters: float, tokens: float) -> float:
        return self.floor + self.a / parameters**self.alpha + self.b / tokens**self.beta


DEFAULT_LAW = Law(floor=1.394, a=17.5, alpha=0.35, b=71.0, beta=0.35)
LEAST_BATCH = 2048  # places of a batch at a million expected tokens
_REPEAT_HALF_LIFE = 15.0  # epochs after which repeating has lost most of its worth (Muennighoff et al. 2023, R* = 15)


def effective_tokens(tokens: float, unique: float) -> float:
    """What `tokens` of training are worth in new tokens, when only `unique` different ones exist."""
    if tokens <= unique:
        return tokens
    repeats = tokens / unique - 1
    return unique * (1 + _REPEAT_HALF_LIFE * (1 - math.exp(-repeats / _REPEAT_HALF_LIFE)))


def block_parameters(config: ModelConfig) -> int:
    return config.matrix_parameters - config.vocab_size * config.d_model


def training_memory(
    config: ModelConfig, micro_tokens: int, recompute: Recompute = "none", divided_by: int = 1
) -> float:
    """Bytes: weights, gradients and two moments in fp32, activations kept for the backward pass, and one chunk of
    logits. divided_by: processes that each hold a part of the model, and the whole of what they step.
    """
    attention, mlp = config.layers[0].attention, config.layers[0].mlp
    width = mlp.d_ff if isinstance(mlp, MlpConfig) else mlp.top_k * mlp.expert.d_ff
    per_place = 8 * config.d_model + 4 * (attention.n_heads + attention.n_kv_heads) * attention.key_dim + 4 * width
    kept = config.n_layers * per_place if recompute == "none" else config.n_layers * config.d_model + per_place
    activations = 4.0 * micro_tokens * kept
    state = (20.0 if divided_by == 1 else 24.0 / divided_by) * count_parameters(config)
    return state + activations + 3 * 4.0 * 1024 * config.vocab_size


def measure_training(
    config: ModelConfig,
    rows: int,
    length: int,
    precision: str,
    steps: int = 2,
    micro_rows: int | None = None,
    prepare: Callable[[Decoder], None] | None = None,
    device: torch.device = ALONE.device,
) -> float:
    """Tokens a second of whole training steps (optimizer included) on batches of rows × length; takes steps + 1 of
    them. micro_rows: of them go through the model at a time, by default all. prepare: is given the model before; by
    default `accelerate`.
    """
    model = build(config, seed=0).to(device)
    (prepare or partial(accelerate, device=device))(model)
    optimizer = make_optimizer(model, OptimizerConfig(products="bf16" if precision == "bf16" else "fp32"))
    tokens = torch.arange(rows * length).view(rows, length) % config.vocab_size
    ids, positions = torch.zeros_like(tokens), torch.arange(length).expand(rows, length)
    batch = Batch(tokens, tokens.roll(-1, 1), ids, positions)
    seconds = []
    for number in range(1, steps + 2):
        finish(device)
        start = time.perf_counter()
        for part in batch.split(micro_rows or rows):
            with autocast(precision, device):
                loss = next_token(model, part.to(device))
            (loss.sum / batch.n_targets).backward()
        clip_gradients(model.parameters(), 1.0)
        optimizer.step(number, 1e-3)
        model.zero_grad(set_to_none=True)
        finish(device)
        seconds.append(time.perf_counter() - start)
    return rows * length / float(np.median(seconds[1:]))


@dataclass(frozen=True)
class Speed:
    """FLOP/s of training as a function of model size, from two measured models; straight in the logarithm of
    d_model.
    """

    small: tuple[int, float]
    large: tuple[int, float]

    def flops(self, d_model: int) -> float:
        (d1, f1), (d2, f2) = self.small, self.large
        share = (math.log(d_model) - math.log(d1)) / (math.log(d2) - math.log(d1))
        return f1 + (f2 - f1) * min(1.0, max(0.0, share))

    def times(self, processes: int) -> Speed:
        """That of several processes together, at best."""
        (d1, f1), (d2, f2) = self.small, self.large
        return Speed((d1, f1 * processes), (d2, f2 * processes))

    def tokens_per_second(self, config: ModelConfig, length: int) -> float:
        return self.flops(config.d_model) / config.flops_per_token(length / 2)


def measure_speed(
    vocab_size: int,
    length: int,
    precision: str,
    steps: int = 2,
    device: torch.device = ALONE.device,
    places: int = LEAST_BATCH,
) -> Speed:
    """Two short measurements of so many steps, a few seconds in all; a GPU gets more and wider ones. places: of a
    batch; the fewer they are, the more of the time goes into the optimizer, and on a GPU into starting its work.
    """
    points, sizes = [], ((128, 4), (512, 2))
    if device.type == "cuda":
        sizes, steps = ((256, 4), (1024, 4)), 8 * steps
    for d_model, n_layers in sizes:
        config = standard_config(vocab_size, length, d_model=d_model, n_layers=n_layers)
        rows = max(1, places // length)
        micro = min(rows, micro_rows(config, length, math.inf, device))
        rate = measure_training(config, rows, length, precision, steps, micro, device=device)
        points.append((d_model, rate * config.flops_per_token(length / 2)))
    return Speed(*points)


@dataclass(frozen=True)
class Choice:
    """A size of the ladder with what is expected of it."""

    config: ModelConfig
    tokens: float
    tokens_per_second: float
    bits_per_byte: float


def choose_model(
    seconds: float,
    speed: Speed,
    unique_tokens: float,
    vocab_size: int,
    max_seq_len: int,
    length: int,
    memory: float,
    wishes: Mapping[str, int] | None = None,
    law: Law = DEFAULT_LAW,
    device: torch.device = ALONE.device,
) -> Choice:
    """The best size for `seconds` of training within `memory` bytes. wishes: sizes to be kept, by their name in
    `standard_config`.
    """
    choices: list[Choice] = []
    for d_model, n_layers in LADDER:
        sizes = {"d_model": d_model, "n_layers": n_layers, **(wishes or {})}
        config = standard_config(vocab_size, max_seq_len, **sizes)
        if choices and training_memory(config, micro_rows(config, length, memory, device) * length) > memory:
            break
        rate = speed.tokens_per_second(config, length)
        worth = effective_tokens(rate * seconds, unique_tokens)
        choices.append(Choice(config, rate * seconds, rate, law.bits_per_byte(block_parameters(config), worth)))
    return min(choices, key=lambda choice: choice.bits_per_byte)


def micro_rows(config: ModelConfig, length: int, memory: float, device: torch.device = ALONE.device) -> int:
    """Rows that go through the model at a time: about 8,192 places, on a GPU 32,768; fewer where memory is short."""
    rows = max(1, (8192 if device.type == "cpu" else 32_768) // length)
    while rows > 1 and training_memory(config, rows * length) > memory:
        rows //= 2
    return rows


def tokens_of(steps: int) -> float:
    """What so many updates read in batches of the size that `batch_tokens` gives them."""
    return (steps * LEAST_BATCH) ** 2 / 1e6


def batch_tokens(expected_tokens: float) -> int:
    """Places of a batch: small while tokens are few, since updates are what a short run lacks; grows with their square
    root.
    """
    wanted = LEAST_BATCH * (max(expected_tokens, 1.0) / 1e6) ** 0.5
    return int(2 ** min(19, max(11, round(math.log2(wanted)))))
