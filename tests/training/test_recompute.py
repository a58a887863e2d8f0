"""Activation checkpointing: the same bits, less memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from athanor.models.build import build
from athanor.training.recompute import Recompute, recompute_blocks
from tests.training.test_every_objective import EVERY, Made, trainer
from tests.training.texts import decoder_config


def gradients(make: Callable[[], Made], folder: Path, precision: str, recompute: Recompute) -> dict[str, Tensor]:
    one = trainer(make, folder, micro_rows=2, precision=precision, recompute=recompute)
    loss, metrics, _ = one._accumulate(one.source.next())
    found = {name: p.grad for name, p in one.model.named_parameters() if p.grad is not None}
    return found | {"loss": torch.tensor([loss, *metrics.values()])}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("make", EVERY, ids=lambda make: make.__name__)
def test_recomputed_blocks_give_the_same_gradients(make: Callable[[], Made], precision: str, tmp_path: Path) -> None:
    kept = gradients(make, tmp_path, precision, "none")
    again = gradients(make, tmp_path, precision, "blocks")
    assert kept.keys() == again.keys()
    for name, gradient in kept.items():
        assert torch.equal(gradient, again[name]), name


def test_a_block_keeps_its_input_alone() -> None:
    model = build(decoder_config(), 0)
    tokens = torch.arange(48)[None] % 60
    kept = _bytes_kept(model, tokens)
    recompute_blocks(model)
    inputs = len(model.blocks) * tokens.numel() * model.config.d_model * 4
    assert _bytes_kept(model, tokens) < inputs + kept / 4 < kept / 2


def test_inference_and_the_weights_names_are_as_before() -> None:
    model, plain = build(decoder_config(), 0), build(decoder_config(), 0)
    recompute_blocks(model)
    assert model.state_dict().keys() == plain.state_dict().keys()
    tokens = torch.arange(8)[None]
    with torch.no_grad():
        assert torch.equal(model(tokens), plain(tokens))


def _bytes_kept(model: nn.Module, tokens: Tensor) -> int:
    """Of tensors, each once, that the backward pass of all but the head holds."""
    seen: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(note, lambda tensor: tensor):
        states = model.hidden(tokens)
    assert states.requires_grad
    return sum(seen.values())
