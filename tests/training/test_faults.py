"""Faults while training: what must not touch the weights is left out and counted, resumed or not; signals end it
orderly; a full disk costs checkpoints, not the training.
"""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from athanor.base.errors import AthanorError, RunError, Stopped
from athanor.base.files import read_json, read_jsonl
from athanor.models.decoder import Decoder
from athanor.training.batches import Batch, PackedBatches
from athanor.training.checkpoints import Retention
from athanor.training.faults import Incidents, StopSignals, UpdateWatch
from athanor.training.loop import LoopConfig, Trainer
from athanor.training.objectives import Loss, next_token
from athanor.training.optimizers import OptimizerConfig
from athanor.training.schedules import Schedule

Start = Callable[..., Trainer]


@pytest.fixture
def start(make_model: Callable[[int], Decoder], make_batches: Callable[[], PackedBatches]) -> Start:
    def make(folder: Path, steps: int, objective: Any = next_token, **options: Any) -> Trainer:
        config = LoopConfig(steps, 4, OptimizerConfig(), Schedule(2), **{"checkpoint_every": 3, **options})
        return Trainer(make_model(0), objective, make_batches(), config, folder)

    return make


def at_steps(trainer_steps: set[int], factor: float) -> Callable[[Trainer], None]:
    """Makes the loss of these steps `factor` times what it is, in whichever process they are made."""

    def spoil(trainer: Trainer) -> None:
        def objective(model: Decoder, batch: Batch) -> Loss:
            loss = next_token(model, batch)
            return Loss(loss.sum * (factor if trainer.outcome.steps + 1 in trainer_steps else 1.0), loss.count)

        trainer.arrangement.objective = objective

    return spoil


def interrupted_after(step: int, trainer: Trainer) -> None:
    """Trains, and is torn away before the step after this one."""

    def beat() -> None:
        if trainer.outcome.steps == step:
            raise InterruptedError

    trainer.beat = beat
    with pytest.raises(InterruptedError):
        trainer.run("test")


def same_files(one: Path, other: Path) -> None:
    files = [
        {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()} for folder in (one, other)
    ]
    assert files[0].keys() == files[1].keys()
    for name, content in files[0].items():
        if name.name not in ("timing.jsonl", "incidents.json"):
            assert content == files[1][name], name


def losses(n: int, level: float = 3.0) -> list[float]:
    return list(level + 0.1 * np.random.default_rng(5).standard_normal(n))


def test_a_spike_is_left_out_and_the_next_losses_are_judged_as_before() -> None:
    watch = UpdateWatch(6.0)
    for step, loss in enumerate(losses(100), start=1):
        assert watch.judge(step, loss, 1.0) is None
    assert watch.judge(101, 3.5, 1.0) is None
    assert watch.judge(102, 4.5, 1.0) == "spike"
    assert watch.judge(103, 3.1, 1.0) is None
    assert watch.judge(104, 0.5, 1.0) is None  # far below is good news
    assert UpdateWatch(0.0).judge(1, 1e9, 1.0) is None


def test_nothing_is_a_spike_before_there_is_something_to_compare_with() -> None:
    watch = UpdateWatch(6.0)
    found = [watch.judge(step, loss, 1.0) for step, loss in enumerate([*losses(31), 50.0], start=1)]
    assert found == [None] * 32


def test_a_lasting_rise_is_accepted_after_five_steps(capsys: pytest.CaptureFixture[str]) -> None:
    watch = UpdateWatch(6.0)
    found = [watch.judge(step, loss, 1.0) for step, loss in enumerate(losses(64) + losses(20, level=6.0), start=1)]
    assert found == [None] * 64 + ["spike"] * 5 + [None] * 15
    assert "stays at" in capsys.readouterr().err


def test_a_falling_loss_has_no_spikes() -> None:
    watch = UpdateWatch(6.0)
    falling = [9 / step**0.2 + noise for step, noise in enumerate(losses(3000, level=0.0), start=1)]
    assert all(watch.judge(step, loss, 1.0) is None for step, loss in enumerate(falling, start=1))


def test_the_verdicts_go_on_from_the_state_as_if_nothing_had_happened() -> None:
    all_losses = [*losses(70), *losses(3, 9.0), math.nan, *losses(4, 9.0), *losses(30, 9.0), *losses(20)]
    whole, cut = UpdateWatch(6.0), UpdateWatch(6.0)
    for step, loss in enumerate(all_losses):
        expected = whole.judge(step, loss, 1.0)
        state, cut = cut.get_state(), UpdateWatch(6.0)
        cut.set_state(state)
        assert cut.judge(step, loss, 1.0) == expected


@pytest.mark.parametrize("cut_after", [40, 45])
def test_spikes_are_left_out_exactly_again_by_a_resumed_training(cut_after: int, start: Start, tmp_path: Path) -> None:
    spoil = at_steps({41, 44, 45, 46}, 5.0)
    whole = start(tmp_path / "whole", 50)
    spoil(whole)
    outcome = whole.run("test")
    assert outcome.spikes == 4
    assert outcome.skipped == 0
    lines = read_jsonl(tmp_path / "whole" / "metrics.jsonl")
    assert [line["step"] for line in lines if "spike" in line] == [41, 44, 45, 46]
    assert lines[40]["loss"] > 2 * lines[39]["loss"]
    cut = start(tmp_path / "cut", 50)
    spoil(cut)
    interrupted_after(cut_after, cut)
    again = start(tmp_path / "cut", 50)
    spoil(again)
    assert again.run("test") == outcome
    same_files(tmp_path / "whole", tmp_path / "cut")


def test_ten_that_are_not_finite_end_it_however_many_processes_made_them(start: Start, tmp_path: Path) -> None:
    spoil = at_steps(set(range(2, 12)), math.nan)
    trainer = start(tmp_path, 20)
    spoil(trainer)
    interrupted_after(7, trainer)
    again = start(tmp_path, 20)
    spoil(again)
    with pytest.raises(AthanorError, match="10 steps in a row were not finite"):
        again.run("test")
    assert again.outcome.steps == 11


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_after_the_step_with_a_checkpoint(
    number: signal.Signals, start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start(tmp_path / "whole", 9).run("test")
    trainer = start(tmp_path / "cut", 9)
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)

    def objective(model: Decoder, batch: Batch) -> Loss:
        if trainer.outcome.steps == 4:
            os.kill(os.getpid(), number)
        return next_token(model, batch)

    trainer.arrangement.objective = objective
    with pytest.raises(Stopped) as stopped:
        trainer.run("test")
    assert stopped.value.signal == number
    assert isinstance(stopped.value, KeyboardInterrupt)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == handlers
    said = capsys.readouterr().err
    assert f"{number.name}: stopping after this step" in said
    assert "Stopped after step 5, which is saved" in said
    assert (tmp_path / "cut" / "checkpoints" / "step-00000005").is_dir()
    again = start(tmp_path / "cut", 9)
    again.run("test")
    assert again.outcome.incidents == Incidents(resumed=1)
    same_files(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_a_second_signal_does_what_it_always_did() -> None:
    with StopSignals() as signals:
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.received == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_ignored_signals_stay_ignored_and_threads_leave_them_alone() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with StopSignals() as signals:
            os.kill(os.getpid(), signal.SIGINT)
            assert signals.received is None
    finally:
        signal.signal(signal.SIGINT, before)
    entered: list[bool] = []
    thread = threading.Thread(target=lambda: entered.append(StopSignals().__enter__().received is None))
    thread.start()
    thread.join()
    assert entered == [True]


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX limits")
@pytest.mark.parametrize("room", [64, 3000])  # bytes a file may have: nothing at all, and all but a checkpoint
def test_a_disk_that_is_full_for_a_while_changes_nothing(room: int, start: Start, tmp_path: Path) -> None:
    import resource

    start(tmp_path / "whole", 12).run("test")
    trainer = start(tmp_path / "cut", 12)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def beat() -> None:
        step = trainer.outcome.steps
        if step in (4, 10):
            trainer.checkpoints.join()
            resource.setrlimit(resource.RLIMIT_FSIZE, (room if step == 4 else soft, hard))

    trainer.beat = beat
    try:
        trainer.run("test")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert trainer.outcome.incidents == Incidents(missed_checkpoints=2)
    same_files(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX limits")
def test_a_disk_that_is_full_at_the_end_loses_the_newest_steps_alone(start: Start, tmp_path: Path) -> None:
    import resource

    start(tmp_path / "whole", 8).run("test")
    trainer = start(tmp_path / "cut", 8)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def beat() -> None:
        if trainer.outcome.steps == 7:
            trainer.checkpoints.join()
            resource.setrlimit(resource.RLIMIT_FSIZE, (64, hard))

    trainer.beat = beat
    try:
        with pytest.raises(RunError, match="step 8 could not be written; that of step 6 is kept") as raised:
            trainer.run("test")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "the same command again" in raised.value.hint
    start(tmp_path / "cut", 8).run("test")
    same_files(tmp_path / "whole", tmp_path / "cut")


def test_the_best_and_every_nth_checkpoint_outlive_the_training(start: Start, tmp_path: Path) -> None:
    values = {2: 3.0, 4: 1.0, 6: 2.0, 8: 4.0}

    def make(folder: Path) -> Trainer:
        retention = Retention(2, "loss", every=6)
        trainer = start(folder, 9, checkpoint_every=2, evaluate_every=2, retention=retention)
        trainer.evaluate = lambda _: {"loss": values[trainer.outcome.steps]}
        return trainer

    make(tmp_path / "whole").run("test")
    kept = sorted(path.name for path in (tmp_path / "whole" / "checkpoints").iterdir())
    assert kept == ["step-00000004", "step-00000006", "step-00000009"]
    interrupted_after(7, make(tmp_path / "cut"))
    make(tmp_path / "cut").run("test")
    same_files(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.parametrize("content", ["", "[]", '{"timing": {"resumed": "x"}}', '{"timing": {}}'])
def test_damaged_counts_are_no_error(content: str, start: Start, tmp_path: Path) -> None:
    assert Incidents.read(tmp_path / "incidents.json") is None
    (tmp_path / "incidents.json").write_text(content)
    assert Incidents.read(tmp_path / "incidents.json") == Incidents()
    start(tmp_path, 3).run("test")
    counts = {"resumed": 1, "damaged_checkpoints": 0, "missed_checkpoints": 0}
    assert read_json(tmp_path / "incidents.json") == {"timing": counts}


def test_an_update_left_out_moves_no_weight(start: Start, tmp_path: Path) -> None:
    trainer = start(tmp_path, 45)
    at_steps({40}, 50.0)(trainer)
    seen: list[list[torch.Tensor]] = []
    trainer.beat = lambda: seen.append([parameter.detach().clone() for parameter in trainer.model.parameters()])
    trainer.run("test")
    assert all(map(torch.equal, seen[38], seen[39]))
    assert not all(map(torch.equal, seen[39], seen[40]))
