"""The planner's arithmetic: FLOPs against torch's counter, memory against what autograd keeps, choices against the
time.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from athanor.models.build import build, count_parameters
from athanor.models.config import ModelConfig, standard_config
from athanor.models.decoder import Decoder
from athanor.science import planner
from athanor.science.planner import Choice, Law, Speed, choose_model, effective_tokens
from athanor.training.batches import Batch
from athanor.training.objectives import next_token


def counted_flops(config: ModelConfig, time: int, training: bool) -> float:
    """Operations a token as torch counts them; it counts the whole square of the attention, so context = time."""
    model = build(config, 0)
    tokens = torch.zeros(2, time, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            logits = model(tokens)
            if training:
                logits.sum().backward()
    return counter.get_total_flops() / tokens.numel()


@pytest.mark.parametrize(("d_model", "n_layers"), [(128, 2), (192, 1), (320, 2)])
def test_flops_equal_torchs_count(d_model: int, n_layers: int) -> None:
    config = standard_config(512, 128, d_model=d_model, n_layers=n_layers)
    assert config.flops_per_token(32, training=False) == pytest.approx(counted_flops(config, 32, False), rel=0.01)
    assert config.flops_per_token(32) == pytest.approx(counted_flops(config, 32, True), rel=0.02)


def test_every_rung_can_be_built_and_quantised() -> None:
    for d_model, n_layers in planner.LADDER:
        config = standard_config(8192, 1024, d_model=d_model, n_layers=n_layers)
        with torch.device("meta"):
            model = Decoder(config)
        assert count_parameters(config) == sum(p.numel() for p in model.parameters())
        blocks = sum(p.numel() for name, p in model.named_parameters() if p.dim() == 2 and name.startswith("blocks"))
        assert planner.block_parameters(config) == blocks
        for name, parameter in model.named_parameters():
            assert all(size % 64 == 0 for size in parameter.shape), name
    configs = [standard_config(8192, 1024, d_model=d_model, n_layers=n_layers) for d_model, n_layers in planner.LADDER]
    sizes = [planner.block_parameters(config) for config in configs]
    assert sizes == sorted(sizes)


@pytest.mark.parametrize("d_model", [8, 32, 64, 100, 700])
def test_a_width_that_a_recipe_asks_for_gives_a_model(d_model: int) -> None:
    assert standard_config(512, 64, d_model=d_model, n_layers=1).layers[0].attention.n_heads >= 1


@pytest.mark.parametrize(("d_model", "n_layers"), [(128, 4), (256, 4)])
def test_predicted_memory_is_what_training_takes(d_model: int, n_layers: int) -> None:
    config = standard_config(1024, 128, d_model=d_model, n_layers=n_layers)
    rows, time = 8, 128
    model = build(config, 0)
    tokens = torch.zeros(rows, time, dtype=torch.int64)
    positions = torch.arange(time).expand(rows, time)
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        next_token(model, Batch(tokens, tokens, torch.zeros_like(tokens), positions))
    states = 16 * count_parameters(config)  # weights, gradients, two moments
    actual = states + sum(kept.values()) - 4 * count_parameters(config)  # the weights are among what is kept
    assert 0.6 * actual < planner.training_memory(config, rows * time) < 2 * actual


@given(st.floats(1, 1e12), st.floats(1, 1e9), st.floats(1.01, 10))
def test_repeated_tokens_are_worth_less_but_never_nothing(tokens: float, unique: float, more: float) -> None:
    worth = effective_tokens(tokens, unique)
    assert worth <= tokens * (1 + 1e-9)
    assert worth <= 16.0001 * unique
    assert effective_tokens(tokens * more, unique) >= worth * (1 - 1e-9)
    assert effective_tokens(unique, unique) == unique
    assert effective_tokens(4 * unique, unique) > 3.6 * unique, "four epochs are nearly as good as new text"


def test_speed_is_interpolated_between_what_was_measured_and_held_beyond() -> None:
    speed = Speed((192, 10e9), (512, 40e9))
    assert speed.flops(192) == 10e9
    assert speed.flops(512) == pytest.approx(40e9)
    assert speed.flops(64) == 10e9
    assert speed.flops(2048) == pytest.approx(40e9)
    assert speed.flops(round((192 * 512) ** 0.5)) == pytest.approx(25e9, rel=0.01)
    config = standard_config(8192, 256, d_model=192, n_layers=2)
    assert speed.tokens_per_second(config, 256) == pytest.approx(10e9 / config.flops_per_token(128))


def choose(
    seconds: float, memory: float = 1e12, unique: float = 1e12, rate: float = 1e11, law: Law = planner.DEFAULT_LAW
) -> Choice:
    return choose_model(seconds, Speed((192, rate / 2), (512, rate)), unique, 8192, 1024, 256, memory, law=law)


def test_more_time_never_makes_the_model_smaller_or_worse() -> None:
    choices = [choose(60 * 2**i) for i in range(20)]
    for shorter, longer in pairwise(choices):
        assert planner.block_parameters(longer.config) >= planner.block_parameters(shorter.config)
        assert longer.bits_per_byte <= shorter.bits_per_byte
    assert choices[0].config.d_model < choices[-1].config.d_model
    for choice in choices:
        assert choice.tokens == pytest.approx(choice.tokens_per_second * 60 * 2 ** choices.index(choice))


def test_a_faster_machine_chooses_a_larger_model() -> None:
    assert choose(600, rate=1e14).config.d_model > choose(600, rate=1e10).config.d_model


def test_it_is_the_best_of_those_that_fit() -> None:
    law = replace(planner.DEFAULT_LAW, a=200.0)
    speed = Speed((192, 5e10), (512, 1e11))
    best = choose(600, law=law)
    for rung in planner.LADDER:
        config = standard_config(8192, 1024, d_model=rung[0], n_layers=rung[1])
        tokens = 600 * speed.tokens_per_second(config, 256)
        assert law.bits_per_byte(planner.block_parameters(config), tokens) >= best.bits_per_byte


@pytest.mark.parametrize("memory", [3e8, 1e9, 3e9])
def test_memory_is_respected(memory: float) -> None:
    choice = choose(1e9, memory)
    rows = planner.micro_rows(choice.config, 256, memory)
    assert planner.training_memory(choice.config, rows * 256) <= memory
    assert planner.block_parameters(choice.config) < planner.block_parameters(choose(1e9).config)


def test_with_no_memory_at_all_the_smallest_is_taken() -> None:
    assert choose(1e9, memory=1.0).config.d_model == planner.LADDER[0][0]


@given(st.floats(0, 1e15))
def test_batches_are_powers_of_two_within_bounds(tokens: float) -> None:
    size = planner.batch_tokens(tokens)
    assert 2048 <= size <= 1 << 19
    assert size & (size - 1) == 0
    assert planner.batch_tokens(4 * tokens) >= size


def test_measuring_takes_whole_steps() -> None:
    config = standard_config(256, 64, d_model=64, n_layers=1)
    assert 10 < planner.measure_training(config, 2, 32, "fp32") < 1e7
