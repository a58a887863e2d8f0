"""fp16: the scaled loss gives the gradients of the unscaled one, and the scale finds its place and resumes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from athanor.base.errors import ModelError
from athanor.base.files import read_json, read_jsonl
from athanor.models import precision as precision_module
from athanor.models.decoder import Decoder
from athanor.models.precision import autocast, check_precision
from athanor.training.batches import Batch, PackedBatches
from athanor.training.loop import LoopConfig, Trainer
from athanor.training.loss_scale import LossScale
from athanor.training.objectives import Loss, next_token
from athanor.training.optimizers import OptimizerConfig
from athanor.training.schedules import Schedule


def train(
    folder: Path, model: Decoder, batches: PackedBatches, precision: str, objective: Any = next_token
) -> list[dict[str, float]]:
    config = LoopConfig(8, 2, OptimizerConfig(), Schedule(2), precision=precision, checkpoint_every=4)
    Trainer(model, objective, batches, config, folder).run("test")
    return read_jsonl(folder / "metrics.jsonl")


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_the_bits_learn_nearly_alike(
    precision: str, make_model: Callable[[int], Decoder], make_batches: Callable[[], PackedBatches], tmp_path: Path
) -> None:
    exact = train(tmp_path / "fp32", make_model(0), make_batches(), "fp32")
    half = train(tmp_path / precision, make_model(0), make_batches(), precision)
    for one, other in zip(exact, half, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=0.02)
        assert other["gradient_norm"] == pytest.approx(one["gradient_norm"], rel=0.1)


def test_an_overflow_halves_the_scale_and_is_no_divergence(
    make_model: Callable[[int], Decoder], make_batches: Callable[[], PackedBatches], tmp_path: Path
) -> None:
    calls = 0

    def overflowing(model: Decoder, batch: Batch) -> Loss:
        nonlocal calls
        calls += 1
        loss = next_token(model, batch)
        return Loss(loss.sum * torch.inf, loss.count) if calls <= 4 else loss  # two micro-batches a step

    lines = train(tmp_path, make_model(0), make_batches(), "fp16", overflowing)
    assert [line["step"] for line in lines if line.get("skipped")] == [1, 2]
    assert read_json(next((tmp_path / "checkpoints").glob("*/state.json")))["loss_scale"] == [2.0**14, 6]


def test_the_scale_grows_when_all_goes_well() -> None:
    scale = LossScale()
    for _ in range(2000):
        scale.update(True)
    assert (scale.value, scale.finite) == (2.0**17, 0)
    scale.set_state([1.0, 5])
    scale.update(False)
    assert scale.get_state() == [1.0, 0]


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_autocast_follows_the_device(precision: str, dtype: torch.dtype) -> None:
    for device in (None, torch.device("cpu")):
        with autocast(precision, device):
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


def test_a_batch_moves_as_a_whole(make_batches: Callable[[], PackedBatches]) -> None:
    batch = make_batches().next()
    assert batch.to(torch.device("cpu")) is batch
    moved = batch.to(torch.device("meta"))
    assert {column.device.type for column in moved.columns.values()} == {"meta"}
    assert moved.columns.keys() == batch.columns.keys()


def test_a_device_without_a_type_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr(precision_module, "_slower", lambda _: 2.0)
    for precision in ("fp32", "bf16", "fp16"):
        check_precision(precision, cpu)
    monkeypatch.setattr(precision_module, "_slower", lambda _: 170.0)
    with pytest.raises(ModelError, match="170 times slower than in fp32"):
        check_precision("fp16", cpu)

    def refusing(*_: object) -> object:
        raise RuntimeError("not implemented for 'Half'")

    monkeypatch.setattr(torch.Tensor, "__matmul__", refusing)
    check_precision("fp32", cpu)
    with pytest.raises(ModelError, match=r'precision = "fp16" cannot be used: torch on cpu'):
        check_precision("fp16", cpu)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla T4")
    with pytest.raises(ModelError, match="Tesla T4 has no products in bf16") as caught:
        check_precision("bf16", torch.device("cuda", 0))
    assert "fp16" in caught.value.hint
