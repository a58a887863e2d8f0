"""On a GPU: what a CPU computes, the same bits each time, and attention document by document."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from athanor.base.files import read_jsonl
from athanor.base.machine import measure
from athanor.models.build import build
from athanor.models.precision import check_precision
from athanor.training.loop import Trainer
from athanor.training.objectives import next_token
from athanor.training.parallel import ALONE, compute_exactly, connected
from tests.training.test_every_objective import EVERY, Made, trainer
from tests.training.test_experts import batches
from tests.training.texts import decoder_config

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU")
GPU = replace(ALONE, device=torch.device("cuda", 0))


@pytest.fixture(autouse=True)
def exactly() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    compute_exactly()
    yield
    torch.use_deterministic_algorithms(before)


def decoder() -> Made:
    return build(decoder_config(), 0), batches(), next_token, None


def losses(one: Trainer) -> list[float]:
    return [line["loss"] for line in read_jsonl(one.folder / "metrics.jsonl")]


@pytest.mark.parametrize("make", [decoder, *EVERY], ids=lambda make: make.__name__)
def test_it_learns_what_a_cpu_does(make: Callable[[], Made], tmp_path: Path) -> None:
    found = []
    for group in (ALONE, GPU):
        one = trainer(make, tmp_path / group.device.type, group=group)
        one.run("test")
        found.append(losses(one))
        assert next(one.whole_model().parameters()).device.type == "cpu"
    assert found[1] == pytest.approx(found[0], rel=2e-3)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("make", [decoder, *EVERY], ids=lambda make: make.__name__)
def test_interrupted_it_ends_with_the_same_bits(make: Callable[[], Made], precision: str, tmp_path: Path) -> None:
    whole = trainer(make, tmp_path / "whole", group=GPU, precision=precision)
    whole.run("test")
    with pytest.raises(KeyboardInterrupt):
        trainer(make, tmp_path / "cut", group=GPU, stop=6, precision=precision).run("test")
    resumed = trainer(make, tmp_path / "cut", group=GPU, precision=precision)
    assert resumed.run("test") == whole.outcome
    for name, weight in whole.model.named_parameters():
        assert torch.equal(weight, dict(resumed.model.named_parameters())[name]), name


def test_a_cpu_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    whole = trainer(decoder, tmp_path / "whole", group=ALONE)
    whole.run("test")
    with pytest.raises(KeyboardInterrupt):
        trainer(decoder, tmp_path / "cut", group=GPU, stop=6).run("test")
    resumed = trainer(decoder, tmp_path / "cut", group=ALONE)
    resumed.run("test")
    assert losses(resumed) == pytest.approx(losses(whole), rel=1e-3)


@pytest.mark.slow
def test_compiled_it_learns_the_same(tmp_path: Path) -> None:
    found = []
    for compile in ("none", "blocks"):
        one = trainer(decoder, tmp_path / compile, group=GPU, precision="bf16", compile=compile)
        one.run("test")
        found.append(losses(one))
    assert found[1] == pytest.approx(found[0], rel=1e-2)


def test_it_is_measured_and_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    with connected() as group:
        assert group.device == GPU.device
        assert group.size == 1
    with connected("cpu") as group:
        assert group.device.type == "cpu"
    assert measure(0.3, GPU.device).bf16 > measure(0.3).bf16
    for precision in ("bf16", "fp16", "fp32"):
        check_precision(precision, GPU.device)
