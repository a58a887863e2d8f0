"""Compiled blocks: the same training up to rounding, and the same bits when it was interrupted."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from athanor.base.errors import AthanorError, RecipeError
from athanor.base.files import read_jsonl
from athanor.models.build import build
from athanor.models.config import standard_config
from athanor.models.decoder import Decoder
from athanor.pipeline import compile_probe
from athanor.pipeline.compile_probe import choose_compile
from athanor.pipeline.recipe_files import load_recipe
from athanor.training import compiling
from athanor.training.batches import DocumentPieces, PackedBatches
from athanor.training.compiling import compile_blocks, has_compiler
from athanor.training.loop import LoopConfig, Trainer
from athanor.training.objectives import next_token
from athanor.training.optimizers import OptimizerConfig
from athanor.training.schedules import Schedule
from tests.training.texts import shards

CONFIG = standard_config(512, 64, d_model=64, n_layers=2)
CPU = torch.device("cpu")


def trainer(folder: Path, stop: int = 0, **options: Any) -> Trainer:
    tokens, offsets = shards()
    source = PackedBatches(DocumentPieces(tokens, offsets, 64, 0), 6, 64, 1, pad_id=0)
    calls = iter(range(1, 100))

    def objective(model: Decoder, batch: Any) -> Any:
        if next(calls) == stop:
            raise KeyboardInterrupt
        return next_token(model, batch)

    # Two micro-batches: one compiled, one with fewer rows, which is not.
    config = LoopConfig(6, 4, OptimizerConfig(), Schedule(1), checkpoint_every=1, **options)
    return Trainer(build(CONFIG, 0), objective, source, config, folder)


@pytest.mark.slow
@pytest.mark.skipif(not has_compiler(CPU), reason="there is no C++ compiler")
def test_it_trains_alike_and_resumes_with_the_same_bits(tmp_path: Path) -> None:
    trainer(tmp_path / "plain").run("test")
    whole = trainer(tmp_path / "whole", compile="blocks")
    whole.run("test")
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path / "cut", stop=7, compile="blocks").run("test")
    torch._dynamo.reset()  # as a new process
    resumed = trainer(tmp_path / "cut", compile="blocks")
    resumed.run("test")
    for name, weight in whole.model.named_parameters():
        assert torch.equal(weight, dict(resumed.model.named_parameters())[name]), name
    plain, compiled = (read_jsonl(tmp_path / name / "metrics.jsonl") for name in ("plain", "whole"))
    for one, other in zip(plain, compiled, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-4)


def test_other_shapes_and_measuring_stay_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = []

    def compile_(function: Any, **_: Any) -> Any:
        def compiled(x: torch.Tensor, *given: Any, **more: Any) -> Any:
            shapes.append(len(x))
            return function(x, *given, **more)

        return compiled

    monkeypatch.setattr(torch, "compile", compile_)
    model, tokens = build(CONFIG, 0), torch.arange(64).view(4, 16)
    expected = model(tokens)
    compile_blocks(model, 4)
    assert torch.equal(model(tokens), expected)
    assert shapes == [4, 4]
    model(tokens[:3])
    with torch.no_grad():
        model(tokens)
    assert shapes == [4, 4]


def life(**settings: Any) -> Any:
    recipe = load_recipe("default", [f"{name}={value}" for name, value in settings.items()])
    return SimpleNamespace(recipe=recipe, group=SimpleNamespace(size=1), speed=object(), precision="fp32", device=CPU)


def test_it_is_tried_where_it_may_pay_and_taken_where_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []
    monkeypatch.setattr(compile_probe, "has_compiler", lambda _: True)
    monkeypatch.setattr(compile_probe, "measure_training", lambda *_, **__: rates.pop(0))
    for found, chosen in (([100.0, 125.0], "blocks"), ([100.0, 99.0], "none")):
        rates[:] = found
        assert choose_compile(life(), CONFIG, 4, 64, 3600.0) == chosen
    clock = iter([0.0, 1000.0])
    with monkeypatch.context() as patch:
        patch.setattr(compile_probe, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
        rates[:] = [100.0, 120.0]
        assert choose_compile(life(), CONFIG, 4, 64, 3600.0) == "none", "compiling takes what it would win"
    for other, seconds in ((life(), 300.0), (life(**{"pretrain.recompute": "blocks"}), 3600.0)):
        assert choose_compile(other, CONFIG, 4, 64, seconds) == "none"  # nothing is measured
    monkeypatch.setattr(compile_probe, "has_compiler", lambda _: False)
    assert choose_compile(life(), CONFIG, 4, 64, 3600.0) == "none"
    with pytest.raises(RecipeError, match="needs a C\\+\\+ compiler"):
        choose_compile(life(**{"pretrain.compile": "blocks"}), CONFIG, 4, 64, 3600.0)


def test_what_cannot_be_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AthanorError, match="computed again"):
        trainer(tmp_path, compile="blocks", recompute="blocks")
    for changes in (["pretrain.recompute=blocks"], ["pretrain.objective=masked"]):
        with pytest.raises(RecipeError, match=r'pretrain\.compile = "blocks"'):
            load_recipe("default", ["pretrain.compile=blocks", *changes])
    monkeypatch.setattr(compiling.shutil, "which", lambda _: None)
    assert not has_compiler(CPU)
