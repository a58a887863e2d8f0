"""The loop: interrupted anywhere it ends with the same bits, what the clock decides is journaled, and it fails
clearly.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from athanor.base.errors import AthanorError, DataError, RunError
from athanor.base.files import read_json, read_jsonl
from athanor.models.decoder import Decoder
from athanor.training.batches import IGNORED, Batch, PackedBatches
from athanor.training.kernels import LANES, training_kernels
from athanor.training.loop import LoopConfig, Trainer
from athanor.training.objectives import Loss, next_token
from athanor.training.optimizers import OptimizerConfig
from athanor.training.schedules import Schedule, Turn
from athanor.training.sources import SourceEnded

Start = Callable[..., Trainer]


class Interrupted(Exception):
    pass


@pytest.fixture
def start(make_model: Callable[[int], Decoder], make_batches: Callable[[], PackedBatches]) -> Start:
    """A trainer as a new process would make it."""

    def make(folder: Path, steps: int | None = 9, objective: Any = next_token, **options: Any) -> Trainer:
        names = ("remaining", "evaluate", "beat", "tensorboard", "source", "identity")
        others = {name: options.pop(name) for name in names if name in options}
        source = others.pop("source", None) or make_batches()
        defaults = {"checkpoint_every": 3, "decay_share": 0.5}
        config = LoopConfig(
            steps, options.pop("micro_rows", 4), OptimizerConfig(), Schedule(2), **{**defaults, **options}
        )
        return Trainer(make_model(0), objective, source, config, folder, **others)

    return make


def raising_at(call: int, error: BaseException) -> Callable[[Decoder, Batch], Loss]:
    calls = 0

    def objective(model: Decoder, batch: Batch) -> Loss:
        nonlocal calls
        calls += 1
        if calls == call:
            raise error
        return next_token(model, batch)

    return objective


def weights(trainer: Trainer) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


def assert_same_end(one: Trainer, other: Trainer) -> None:
    assert one.outcome == other.outcome
    for name, weight in weights(one).items():
        assert torch.equal(weight, weights(other)[name]), name
    for name, tensor in one.arrangement.optimizer.state.items():
        assert torch.equal(tensor, other.arrangement.optimizer.state[name]), name
    assert (one.folder / "metrics.jsonl").read_bytes() == (other.folder / "metrics.jsonl").read_bytes()
    assert one.source.get_position() == other.source.get_position()
    checkpoints = [sorted(p for p in (t.folder / "checkpoints").rglob("*") if p.is_file()) for t in (one, other)]
    assert [p.read_bytes() for p in checkpoints[0]] == [p.read_bytes() for p in checkpoints[1]]


def test_what_was_learnt_before_the_source_failed_is_kept(
    start: Start, make_batches: Callable[[], PackedBatches], tmp_path: Path
) -> None:
    whole = start(tmp_path / "whole", checkpoint_every=0)
    whole.run("test")
    source = make_batches()
    own, calls = source.next, iter(range(1, 100))

    def failing() -> Batch:
        batch = own()  # the position has moved on
        if next(calls) == 6:
            raise DataError("The text is gone.")
        return batch

    source.next = failing  # type: ignore[method-assign]
    with pytest.raises(DataError):
        start(tmp_path / "cut", checkpoint_every=0, source=source).run("test")
    assert [path.name for path in (tmp_path / "cut" / "checkpoints").iterdir()] == ["step-00000005"]
    resumed = start(tmp_path / "cut", checkpoint_every=0)
    resumed.run("test")
    assert_same_end(whole, resumed)


def test_training_learns(start: Start, tmp_path: Path) -> None:
    trainer = start(tmp_path, steps=40)
    outcome = trainer.run("test")
    losses = [line["loss"] for line in read_jsonl(tmp_path / "metrics.jsonl")]
    assert len(losses) == outcome.steps == 40
    assert losses[0] == pytest.approx(math.log(64), rel=0.02)
    assert losses[-1] < losses[0] - 0.5
    assert outcome.places == 40 * 4 * 16
    assert 0.8 * outcome.places < outcome.tokens <= outcome.places


class Casts(TorchDispatchMode):
    """Counts how often each parameter becomes another type."""

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.names = {parameter.data_ptr(): name for name, parameter in parameters.items()}
        self.counts = dict.fromkeys(parameters, 0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._to_copy.default and args[0].data_ptr() in self.names:
            self.counts[self.names[args[0].data_ptr()]] += 1
        return func(*args, **(kwargs or {}))


def test_weights_are_cast_once_a_step(start: Start, tmp_path: Path) -> None:
    trainer = start(tmp_path, steps=1, micro_rows=1, precision="bf16")
    matrices = {name: p for name, p in trainer.model.named_parameters() if p.dim() == 2 and p.shape[1] % LANES == 0}
    with Casts(matrices) as casts:
        trainer.run("test")
    once = matrices if training_kernels() else {"embedding.tokens.weight"}  # autocast does the others, part by part
    assert {casts.counts[name] for name in once} == {1}, casts.counts


@pytest.mark.parametrize(("failing", "precision"), [(1, "fp32"), (3, "fp32"), (4, "bf16"), (6, "fp32"), (9, "bf16")])
def test_interrupted_after_any_step_it_ends_with_the_same_bits(
    failing: int, precision: str, start: Start, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"precision": precision, "evaluate_every": 2}
    options["evaluate"] = lambda model: {"norm": model.norm.weight.norm().item()}
    whole = start(tmp_path / "whole", **options)
    whole.run("test")
    with pytest.raises(Interrupted):
        start(tmp_path / "cut", objective=raising_at(failing, Interrupted()), **options).run("test")
    with pytest.raises(KeyboardInterrupt):  # and again, right after having resumed
        start(tmp_path / "cut", objective=raising_at(1, KeyboardInterrupt()), **options).run("test")
    resumed = start(tmp_path / "cut", **options)
    resumed.run("test")
    assert_same_end(whole, resumed)


_PROCESS = """
import os, sys
from pathlib import Path
import numpy as np, torch
from athanor.models.config import AttentionConfig, LayerConfig, MlpConfig, ModelConfig
from athanor.models.build import build
from athanor.training.batches import DocumentPieces, PackedBatches
from athanor.training.loop import LoopConfig, Trainer
from athanor.training.sources import SourceEnded
from athanor.training.objectives import next_token
from athanor.training.optimizers import OptimizerConfig
from athanor.training.schedules import Schedule

torch.set_num_threads(1)
calls = moment = 0

def dying(original):
    def call(*arguments, **options):
        global calls
        calls += 1
        if calls == moment:
            os.kill(os.getpid(), 9)
        return original(*arguments, **options)
    return call

os.replace, os.fsync, os.rmdir, os.unlink = dying(os.replace), dying(os.fsync), dying(os.rmdir), dying(os.unlink)
os.open = dying(os.open)

def make():
    return build(ModelConfig(8, 8, 16, (LayerConfig(AttentionConfig(1, 1, 8, qk_norm="head"), MlpConfig(8)),) * 1), 0)

def train(folder):
    tokens = np.arange(300) % 7
    batches = PackedBatches(DocumentPieces(tokens, np.array([0, 100, 300]), 16, 0), 2, 16, 0, pad_id=0)
    config = LoopConfig(5, 2, OptimizerConfig(), Schedule(1), checkpoint_every=1)
    Trainer(make(), next_token, batches, config, folder).run("test")

make()  # what torch imports at first use is then there for every child
for argument in sys.argv[2:]:
    if (child := os.fork()) == 0:
        moment = int(argument)
        train(Path(sys.argv[1]))
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")
def test_kill_9_while_writing_leaves_a_run_that_continues_exactly(tmp_path: Path) -> None:
    moments = {"whole": [0], "cut": [2, 9, 17, 3, 30, 1, 23, 12, 40, 5, 26, 35, 7, 29, 0]}  # the nth call to the disk
    for name, kills in moments.items():
        done = subprocess.run(
            [sys.executable, "-c", _PROCESS, str(tmp_path / name), *map(str, kills)],
            capture_output=True, text=True, check=True, env=os.environ | {"ATHANOR_QUIET": "1"},
        )  # fmt: skip
        statuses = [int(status) for status in done.stdout.split()]
        assert statuses[-1] == 0, done.stderr
        assert statuses[:-1].count(-signal.SIGKILL) >= len(kills) // 2, f"{statuses} {done.stderr}"
    whole, cut = ({p.relative_to(tmp_path / n): p for p in (tmp_path / n).rglob("*") if p.is_file()} for n in moments)
    assert whole.keys() == cut.keys()
    for name, path in whole.items():
        if name.name not in ("timing.jsonl", "incidents.json"):
            assert path.read_bytes() == cut[name].read_bytes(), name


def test_a_checkpoint_of_another_stage_is_refused(start: Start, tmp_path: Path) -> None:
    start(tmp_path, identity="one").run("test")
    with pytest.raises(RunError, match="does not belong to this stage"):
        start(tmp_path, identity="another").run("test")


def test_a_finished_training_is_not_repeated(start: Start, tmp_path: Path) -> None:
    first = start(tmp_path)
    first.run("test")
    again = start(tmp_path, objective=raising_at(1, Interrupted()))
    assert again.run("test") == first.outcome
    assert_same_end(first, again)


class Clock:
    """Seconds left, where a step takes `pace` seconds: both the loop's stopwatch and its deadline."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, budget: float, pace: float = 1.0) -> None:
        self.now, self.budget, self.pace = 0.0, budget, pace
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)

    def objective(self, model: Decoder, batch: Batch) -> Loss:
        self.now += self.pace
        return next_token(model, batch)

    def remaining(self) -> float:
        return self.budget - self.now


def test_a_clock_driven_run_uses_its_time_and_decays_for_its_share(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch, budget=40.5)
    outcome = start(tmp_path, None, clock.objective, remaining=clock.remaining).run("test")
    assert outcome.steps == 40
    assert outcome.turns == [Turn(20, 40)]
    assert read_json(tmp_path / "journal.json") == {"turns": [[20, 40]]}
    rates = [line["rate"] for line in read_jsonl(tmp_path / "metrics.jsonl")]
    assert rates[1:20] == [1.0] * 19
    assert rates[-1] == pytest.approx(1 / 21)


@pytest.mark.parametrize("journal", ["[]", "null", '{"turns": [[1]]}', '{"turns": [["a", "b"]]}', '{"turns": 3}'])
def test_a_damaged_journal_is_named(journal: str, start: Start, tmp_path: Path) -> None:
    (tmp_path / "journal.json").write_text(journal)
    with pytest.raises(RunError, match=r"journal\.json is damaged"):
        start(tmp_path, 3).run("test")
    (tmp_path / "journal.json").write_text('{"turns": []}')
    assert start(tmp_path, 3).run("test").steps == 3


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9])
@pytest.mark.parametrize("budget", [0.0, 2.5, 12.5])
def test_the_clock_ends_a_run_whatever_its_share_of_decay(
    share: float, budget: float, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch, budget)

    def objective(model: Decoder, batch: Batch) -> Loss:
        assert clock.now < 60, "it does not end"
        return clock.objective(model, batch)

    outcome = start(tmp_path, None, objective, remaining=clock.remaining, decay_share=share).run("test")
    assert max(4, int(budget)) - 1 <= outcome.steps <= max(4, int(budget) + 1)


def test_a_machine_that_slows_down_ends_sooner(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, budget=100.5)

    def objective(model: Decoder, batch: Batch) -> Loss:
        clock.pace = 1.0 if clock.now < 55 else 4.0
        return clock.objective(model, batch)

    outcome = start(tmp_path, None, objective, remaining=clock.remaining).run("test")
    assert outcome.turns[0] == Turn(50, 100)
    assert len(outcome.turns) > 1
    assert all(later.end < earlier.end for earlier, later in zip(outcome.turns, outcome.turns[1:], strict=False))
    assert clock.now <= 1.15 * 100.5
    rates = [line["rate"] for line in read_jsonl(tmp_path / "metrics.jsonl")][2:]
    assert all(a >= b for a, b in zip(rates, rates[1:], strict=False))


def test_a_machine_that_speeds_up_goes_on_for_longer(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch, budget=100.5)

    def objective(model: Decoder, batch: Batch) -> Loss:
        clock.pace = 2.0 if clock.now < 55 else 1.0
        return clock.objective(model, batch)

    outcome = start(tmp_path, None, objective, remaining=clock.remaining).run("test")
    assert outcome.turns[0].end <= 51
    assert outcome.steps > 65
    assert 0.9 * 100.5 <= clock.now <= 1.05 * 100.5
    rates = [line["rate"] for line in read_jsonl(tmp_path / "metrics.jsonl")][2:]
    assert all(a >= b for a, b in zip(rates, rates[1:], strict=False))
    assert rates[-1] < 0.1
    assert rates[-1] < 0.25


@pytest.mark.parametrize("failing", [21, 22, 25, 30])
def test_a_resumed_clock_driven_run_repeats_what_is_journaled(
    failing: int, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch, budget=40.5)
    whole = start(tmp_path / "whole", None, clock.objective, remaining=clock.remaining)
    whole.run("test")
    clock = Clock(monkeypatch, budget=40.5)
    failure = raising_at(failing, Interrupted())

    def interrupted(model: Decoder, batch: Batch) -> Loss:
        clock.now += 1
        return failure(model, batch)

    with pytest.raises(Interrupted):
        start(tmp_path / "cut", None, interrupted, remaining=clock.remaining, checkpoint_every=7).run("test")
    assert read_json(tmp_path / "cut" / "journal.json") == {"turns": [[20, 40]]}, (
        "journaled before the first step it concerns"
    )
    clock = Clock(monkeypatch, budget=40.5)  # what was lost does not count here: the decisions alone are compared
    clock.now = float((failing - 1) // 7 * 7)
    resumed = start(tmp_path / "cut", None, clock.objective, remaining=clock.remaining, checkpoint_every=7)
    resumed.run("test")
    assert resumed.outcome == whole.outcome
    assert all(torch.equal(weight, weights(resumed)[name]) for name, weight in weights(whole).items())
    assert (tmp_path / "cut" / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()


def test_resuming_late_still_decays(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Resumed before a journaled turn with hardly any time left: the turns stay in order, and the rate falls."""
    clock = Clock(monkeypatch, budget=40.5)
    failure = raising_at(22, Interrupted())

    def interrupted(model: Decoder, batch: Batch) -> Loss:
        clock.now += 1
        return failure(model, batch)

    with pytest.raises(Interrupted):
        start(tmp_path, None, interrupted, remaining=clock.remaining, checkpoint_every=14).run("test")
    clock.budget = clock.now + 9.5
    outcome = start(tmp_path, None, clock.objective, remaining=clock.remaining, checkpoint_every=14).run("test")
    assert outcome.turns[0] == Turn(20, 40)
    assert [turn.step for turn in outcome.turns] == sorted(turn.step for turn in outcome.turns)
    assert outcome.steps < 26
    assert read_jsonl(tmp_path / "metrics.jsonl")[-1]["rate"] < 0.5


def test_given_turns_repeat_a_clock_driven_run_without_a_clock(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch, budget=60.5)

    def objective(model: Decoder, batch: Batch) -> Loss:
        clock.pace = 1.0 if clock.now < 35 else 3.0
        return clock.objective(model, batch)

    timed = start(tmp_path / "timed", None, objective, remaining=clock.remaining)
    timed.run("test")
    assert len(timed.outcome.turns) > 1
    turns = tuple(timed.outcome.turns)
    monkeypatch.undo()
    with pytest.raises(Interrupted):
        start(tmp_path / "again", None, raising_at(5, Interrupted()), turns=turns).run("test")
    assert read_json(tmp_path / "again" / "journal.json") == {"turns": [list(turn) for turn in turns]}
    again = start(tmp_path / "again", None, turns=turns, remaining=lambda: 0.0)
    again.run("test")
    assert_same_end(timed, again)


def test_a_loop_without_an_end_is_refused(start: Start, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="clock"):
        start(tmp_path, None)


@pytest.mark.parametrize("micro_rows", [1, 3])
def test_micro_batches_give_the_gradients_of_the_whole_batch(micro_rows: int, start: Start, tmp_path: Path) -> None:
    gradients = []
    for rows in (4, micro_rows):
        trainer = start(tmp_path / str(rows), micro_rows=rows)
        with torch.no_grad():
            for parameter in trainer.model.parameters():
                parameter.add_(0.05)
        batch = trainer.source.next()
        batch.targets[1, 3:] = IGNORED  # micro-batches with different numbers of targets
        loss, _, n_targets = trainer._accumulate(batch)
        gradients.append((loss, n_targets, [p.grad.clone() for p in trainer.model.parameters() if p.grad is not None]))
    assert gradients[0][0] == pytest.approx(gradients[1][0], rel=1e-6)
    assert gradients[0][1] == gradients[1][1]
    for whole, parts in zip(gradients[0][2], gradients[1][2], strict=True):
        torch.testing.assert_close(parts, whole, atol=1e-6, rtol=1e-5)


def spoilt(calls: set[int], value: float = float("nan")) -> Callable[[Decoder, Batch], Loss]:
    counter = 0

    def objective(model: Decoder, batch: Batch) -> Loss:
        nonlocal counter
        counter += 1
        loss = next_token(model, batch)
        return Loss(loss.sum * (value if counter in calls else 1.0), loss.count)

    return objective


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_step_that_is_not_finite_is_left_out_counted_and_explained(
    value: float, start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    states: list[dict[str, Tensor]] = []
    trainer = start(tmp_path, 5, spoilt({3}, value))
    trainer.beat = lambda: states.append(weights(trainer))
    outcome = trainer.run("test")
    assert outcome.steps == 5
    assert outcome.skipped == 1
    assert "Step 3 is left out" in capsys.readouterr().err
    assert all(torch.equal(states[1][name], states[2][name]) for name in states[1])
    assert not all(torch.equal(states[2][name], states[3][name]) for name in states[2])
    assert all(torch.isfinite(weight).all() for weight in states[-1].values())
    lines = read_jsonl(tmp_path / "metrics.jsonl")
    assert lines[2] == {"step": 3, "skipped": 1.0}
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()


def test_ten_in_a_row_are_an_error_and_nine_are_not(start: Start, tmp_path: Path) -> None:
    assert start(tmp_path / "nine", 12, spoilt(set(range(2, 11)))).run("test").skipped == 9
    with pytest.raises(AthanorError, match="10 steps in a row were not finite") as raised:
        start(tmp_path / "ten", 12, spoilt(set(range(2, 12)))).run("test")
    assert "learning rates" in raised.value.hint


def test_a_batch_without_targets_is_an_error(
    start: Start, tmp_path: Path, make_batches: Callable[[], PackedBatches]
) -> None:
    class Masked:
        def __init__(self) -> None:
            self.inner = make_batches()
            self.get_position, self.set_position = self.inner.get_position, self.inner.set_position

        def next(self) -> Batch:
            batch = self.inner.next()
            batch.targets[:] = IGNORED
            return batch

    with pytest.raises(AthanorError, match="Batch 1 has no target"):
        start(tmp_path, source=Masked()).run("test")


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damaged", [1, 2])
def test_damaged_checkpoints_cost_time_but_not_exactness(
    damaged: int, start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = start(tmp_path / "whole")
    whole.run("test")
    with pytest.raises(Interrupted):
        start(tmp_path / "cut", objective=raising_at(8, Interrupted())).run("test")
    present = sorted((tmp_path / "cut" / "checkpoints").iterdir())
    assert [path.name for path in present] == ["step-00000003", "step-00000006"]
    for path in present[-damaged:]:
        _flip(path / "state.safetensors")
    resumed = start(tmp_path / "cut")
    resumed.run("test")
    assert_same_end(whole, resumed)
    said = capsys.readouterr().err
    assert "step-00000006 is damaged" in said
    assert ("Continuing after step 3." if damaged == 1 else "training starts over") in said


def test_damaged_checkpoints_do_not_count_among_those_that_are_kept(start: Start, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    with pytest.raises(Interrupted):
        start(tmp_path, objective=raising_at(8, Interrupted())).run("test")
    _flip(folder / "step-00000006" / "state.safetensors")
    with pytest.raises(Interrupted):
        start(tmp_path, objective=raising_at(2, Interrupted())).run("test")
    assert [path.name for path in folder.iterdir()] == ["step-00000003"]


def test_a_checkpoint_of_a_newer_version_is_refused(start: Start, tmp_path: Path) -> None:
    start(tmp_path, 3).run("test")
    path = tmp_path / "checkpoints" / "step-00000003" / "state.json"
    path.write_text(json.dumps(read_json(path) | {"schema_version": 999}))
    with pytest.raises(RunError, match="newer version"):
        start(tmp_path, 3).run("test")


def test_bf16_trains_about_as_well_with_fp32_weights(start: Start, tmp_path: Path) -> None:
    losses = {}
    for precision in ("fp32", "bf16"):
        trainer = start(tmp_path / precision, 30, precision=precision)
        trainer.run("test")
        losses[precision] = read_jsonl(tmp_path / precision / "metrics.jsonl")[-1]["loss"]
        assert all(p.dtype == torch.float32 for p in trainer.model.parameters())
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.1)
    assert losses["bf16"] != losses["fp32"]


def test_what_is_measured_and_no_number_is_said_and_not_noted(
    start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def objective(model: Decoder, batch: Batch) -> Loss:
        loss = next_token(model, batch)
        return Loss(loss.sum, loss.count, {"drift": math.inf, "ones": float(loss.count)})

    options = {"evaluate": lambda model: {"bits_per_byte": math.nan, "other": 2.0}, "evaluate_every": 3}
    start(tmp_path, 6, objective, **options).run("test")
    lines = read_jsonl(tmp_path / "metrics.jsonl")
    assert [line.get("other") for line in lines] == [None, None, 2.0] * 2
    assert not any({"bits_per_byte", "drift"} & line.keys() for line in lines)
    assert "Step 3: bits_per_byte is no finite number" in capsys.readouterr().err


def test_what_the_source_and_the_objective_report_is_logged(start: Start, tmp_path: Path) -> None:
    def objective(model: Decoder, batch: Batch) -> Loss:
        loss = next_token(model, batch)
        return Loss(loss.sum, loss.count, {"ones": float(loss.count)})

    beats: list[int] = []
    evaluations: list[Mapping[str, float]] = []

    def evaluate(model: Decoder) -> dict[str, float]:
        evaluations.append({"bits_per_byte": 2.0})
        return {"bits_per_byte": 2.0}

    start(
        tmp_path, 4, objective, micro_rows=1, evaluate=evaluate, evaluate_every=2, beat=lambda: beats.append(1)
    ).run("test")  # fmt: skip
    lines = read_jsonl(tmp_path / "metrics.jsonl")
    assert [line["ones"] for line in lines] == [pytest.approx(1.0)] * 4
    assert ["bits_per_byte" in line for line in lines] == [False, True, False, True]
    assert len(beats) == 4
    assert all({"tokens_per_second", "seconds"} <= line.keys() for line in read_jsonl(tmp_path / "timing.jsonl"))


class Ending:
    """A source that has nothing left after `last` batches."""

    def __init__(self, source: PackedBatches, last: int) -> None:
        self.source, self.last, self.given = source, last, 0

    def next(self) -> Batch:
        if self.given == self.last:
            raise SourceEnded("all is learnt.")
        self.given += 1
        return self.source.next()

    def get_position(self) -> dict[str, Any]:
        return {"given": self.given, "source": self.source.get_position()}

    def set_position(self, position: Mapping[str, Any]) -> None:
        self.given = position["given"]
        self.source.set_position(position["source"])


def test_turns_of_a_source_that_ended_early_can_be_repeated(
    start: Start, make_batches: Callable[[], PackedBatches], tmp_path: Path
) -> None:
    ended = start(tmp_path / "ended", 9, source=Ending(make_batches(), 3))
    turns = ended.run("test").turns
    assert turns == [Turn(3, 3)]
    again = start(tmp_path / "again", None, turns=tuple(turns))
    again.run("test")
    for name, weight in weights(ended).items():
        assert torch.equal(weight, weights(again)[name])
