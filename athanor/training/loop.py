"""The training loop: one for pre-training, fine-tuning, and policy optimisation alike.

It asks a source for the next batch, an objective for the loss, and steps the optimizer; it ends after a fixed number of
steps, or on time. What the clock decides is journaled before it takes effect, so a resumed run repeats every decision
and ends with the very bits of one that was never stopped.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

from torch import Tensor, nn

from athanor.base.errors import AthanorError, DiskFullError, RunError, Stopped
from athanor.base.files import write_json
from athanor.base.metrics import MetricsLog, NoLog
from athanor.base.progress import progress, say
from athanor.models.precision import autocast, casting_once
from athanor.training.acceleration import accelerate
from athanor.training.arrangements import arrange
from athanor.training.averaging import AverageKind
from athanor.training.batches import Batch
from athanor.training.checkpoints import Retention, remove_damaged
from athanor.training.compiling import Compile, has_compiler
from athanor.training.faults import Fault, Incidents, StopSignals, UpdateWatch
from athanor.training.loss_scale import LossScale
from athanor.training.objectives import Loss
from athanor.training.optimizers import OptimizerConfig
from athanor.training.parallel import ALONE, Group
from athanor.training.recompute import Recompute, recompute_blocks
from athanor.training.schedules import Schedule, Turn
from athanor.training.sources import Follower, Source, SourceEnded, read_journal

_RECENT = 20  # steps whose median time predicts the next ones
_COUNTERS = ("tokens", "places", "skipped", "spikes")


@dataclass(frozen=True)
class LoopConfig:
    """steps: how many updates, or None to end by the clock. decay_share: part of the steps that decays. turns: where an
    earlier run turned, to do the same whatever the clock says.

    micro_rows: rows of a batch that go through the model at a time, in each process. checkpoint_every, evaluate_every:
    in steps; 0 for never (a checkpoint is always written at the end). retention: which checkpoints are kept; at the end
    only the last of the newest. clip: largest joint norm of the gradients. precision: "fp32", "bf16", or "fp16" with
    scaled losses. spike_deviations: of a loss whose update is left out, see `UpdateWatch`; 0 where the loss is not a
    measure of fit. average: of the weights while the rate falls, which the model has in the end. recompute: what the
    backward pass computes again instead of keeping it. compile: what goes through a compiler, see `compile_blocks`.
    """

    steps: int | None
    micro_rows: int
    optimizer: OptimizerConfig
    schedule: Schedule
    decay_share: float = 0.5
    clip: float = 1.0
    precision: str = "fp32"
    spike_deviations: float = 6.0
    checkpoint_every: int = 0
    retention: Retention = field(default_factory=Retention)
    evaluate_every: int = 0
    turns: tuple[Turn, ...] = ()
    average: AverageKind = "none"
    recompute: Recompute = "none"
    compile: Compile = "none"

    def __post_init__(self) -> None:
        if self.schedule.kind != "wsd" and self.steps is None and not self.turns:
            raise ValueError(f"a {self.schedule.kind} schedule needs to know the number of steps")


@dataclass
class Outcome:
    """steps: updates done in all. tokens: targets learnt from. places: all that went through the model, prompts and
    padding too. skipped, spikes: updates left out because they were not finite, or their loss far beyond the recent
    ones. incidents: what happened beside the steps, which differs between runs that end alike.
    """

    steps: int = 0
    tokens: int = 0
    places: int = 0
    skipped: int = 0
    spikes: int = 0
    turns: list[Turn] = field(default_factory=list)
    incidents: Incidents = field(default_factory=Incidents, compare=False)


def _compiles(group: Group) -> bool:
    """Whether blocks can be compiled; said aloud where not."""
    if group.size > 1:
        say("Blocks are compiled for one process alone; here they are not.")
    elif not has_compiler(group.device):
        say("Blocks are not compiled: there is no C++ compiler here.")
    else:
        return True
    return False


class Trainer:
    """One training stage. folder holds checkpoints, journal and logs; remaining() says how many seconds are left.

    objective: (model, batch) → Loss, of whatever kind of model and batch. evaluate: (model) → metrics, called every
    `evaluate_every` steps. write: (model) → texts by name, which TensorBoard then shows beside them. after_step:
    (model, whether the step was made), changes what no gradient does, alike in all processes. beat: called after each
    step, to note the time spent. identity: what is trained; a checkpoint of another is refused.
    group: the processes that train together, each with the same arguments; sharded: whether each holds only a part of
    the model. The model's weights are then in `whole_model()` alone.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Callable[[Any, Any], Loss],
        source: Source,
        config: LoopConfig,
        folder: Path,
        *,
        remaining: Callable[[], float] | None = None,
        evaluate: Callable[[Any], Mapping[str, float]] | None = None,
        write: Callable[[Any], Mapping[str, str]] | None = None,
        after_step: Callable[[Any, bool], None] | None = None,
        beat: Callable[[], None] = lambda: None,
        tensorboard: Path | None = None,
        peak_rate: float | None = None,
        flops_per_token: float = 0.0,
        identity: str = "",
        group: Group = ALONE,
        sharded: bool = False,
    ) -> None:
        if config.steps is None and remaining is None and not config.turns:
            raise ValueError("a loop without a number of steps needs a clock")
        self.model, self.source, self.config, self.folder, self.group = model, source, config, folder, group
        self.remaining, self.evaluate, self.beat, self.tensorboard = remaining, evaluate, beat, tensorboard
        self.after_step, self.write = after_step, write
        self.peak_rate, self.flops_per_token, self.identity = peak_rate, flops_per_token, identity
        if config.compile == "blocks" and config.recompute != "none":
            raise AthanorError(
                "Blocks are not compiled where activations are computed again.", 'Leave compile = "blocks" out.'
            )
        compiled = config.compile == "blocks" and _compiles(group)
        accelerate(model, group.device, config.micro_rows if compiled else None)
        if config.recompute == "blocks":
            recompute_blocks(model)
        self.arrangement = arrange(model, objective, config.optimizer, config.average, group, sharded)
        self.scale = LossScale() if config.precision == "fp16" else None
        self.outcome = Outcome()
        self.watch = UpdateWatch(config.spike_deviations)
        missed = self._note_missed_checkpoint
        self.checkpoints = self.arrangement.writer(folder / "checkpoints", config.retention, missed)
        self._step_seconds: list[float] = []
        self._held_out: tuple[int, Mapping[str, float]] = 0, {}

    def run(self, description: str) -> Outcome:
        """Trains to the end, from wherever the folder's newest checkpoint stands.

        SIGTERM and SIGINT, to any of the processes, end it after the step, with a checkpoint, by raising Stopped.
        """
        with self.group.explaining():
            return self._run(description)

    def whole_model(self) -> Any:
        """The model with its trained weights, to be saved; on the first process. All processes must ask for it."""
        return self.arrangement.whole_model()

    def _run(self, description: str) -> Outcome:
        self._resume()
        outcome = self.outcome
        log = MetricsLog(self.folder, self.tensorboard, outcome.steps) if self.group.is_first else NoLog()
        try:
            total = outcome.turns[-1].end if outcome.turns else None
            with StopSignals() as signals, progress(description, total=total, unit="step") as bar:
                bar.update(completed=outcome.steps)
                while not self._finished():
                    self._decide()
                    self._step(log, bar)
                    self.checkpoints.check()
                    if stop := self.group.largest(signals.received or 0):
                        self._stop(log, stop)
                    elif self.config.checkpoint_every and outcome.steps % self.config.checkpoint_every == 0:
                        self.checkpoints.save(*self._state(), log.sync)
            self.checkpoints.save_now(*self._state(), log.sync, replace(self.config.retention, last=1))
        finally:
            self.checkpoints.join()
            log.close()
        if self.arrangement.average is not None:
            self.arrangement.average.give()
        return outcome

    def _stop(self, log: MetricsLog | NoLog, signal: int) -> None:
        try:
            self.checkpoints.save_now(*self._state(), log.sync)
            say(f"Stopped after step {self.outcome.steps}, which is saved; the same command continues from there.")
        except AthanorError as error:
            say(str(error))
        raise Stopped(signal)

    def _note_missed_checkpoint(self) -> None:
        self.outcome.incidents.missed_checkpoints += 1
        self._write_incidents()

    def _write_incidents(self) -> None:
        if self.group.is_first:
            self.outcome.incidents.write(self.folder / "incidents.json")

    def _finished(self) -> bool:
        turns = self.outcome.turns
        return bool(turns) and self.outcome.steps >= turns[-1].end

    def _resume(self) -> None:
        earlier = Incidents.read(self.folder / "incidents.json")
        checkpoint, damaged = self.arrangement.find(self.folder / "checkpoints")
        incidents = self.outcome.incidents = earlier or Incidents()
        incidents.resumed += earlier is not None
        incidents.damaged_checkpoints += damaged
        if damaged and checkpoint is not None and self.group.is_first:
            remove_damaged(self.folder / "checkpoints", int(checkpoint.numbers["step"]))
        if checkpoint is not None:
            numbers = checkpoint.numbers
            try:
                if numbers["identity"] != self.identity:
                    raise ValueError("it was made by another one")
                self.arrangement.load(checkpoint)
                self.source.set_position(numbers["position"])
                self.watch.set_state(numbers["watch"])
                if self.scale:
                    self.scale.set_state(numbers["loss_scale"])
                for name in _COUNTERS:
                    setattr(self.outcome, name, int(numbers[name]))
                self.outcome.steps = int(numbers["step"])
                self._held_out = self.outcome.steps, numbers["held_out"]
            except (RuntimeError, KeyError, TypeError, ValueError) as error:
                raise RunError(
                    f"The newest checkpoint in {self.folder / 'checkpoints'} does not belong to this stage "
                    f"({str(error).splitlines()[0]}).",
                    "Remove that folder to train the stage again, or start over with --fresh.",
                ) from None
            say(f"Continuing after step {self.outcome.steps}.")
        self._write_incidents()
        if checkpoint is None:
            self.checkpoints.announce(self.arrangement.state())
        journal = read_journal(self.folder / "journal.json") if self.group.is_first else []
        said = self.group.told({"turns": [list(turn) for turn in journal]})
        self.outcome.turns = [Turn(*turn) for turn in said["turns"]]
        if self.outcome.turns:
            return
        if self.config.turns:
            self._turn(*self.config.turns)
        elif self.config.steps is not None:
            self._turn(self.config.schedule.turn_of(self.config.steps, self.config.decay_share))

    def _state(self) -> tuple[int, dict[str, Tensor], dict[str, Any]]:
        """All that training depends on: the step, tensors, not copied, and numbers."""
        numbers: dict[str, Any] = {name: getattr(self.outcome, name) for name in _COUNTERS}
        numbers |= {"position": self.source.get_position(), "identity": self.identity, "watch": self.watch.get_state()}
        if self.scale:
            numbers["loss_scale"] = self.scale.get_state()
        measured, held_out = self._held_out
        numbers["held_out"] = dict(held_out) if measured == self.outcome.steps else {}
        return self.outcome.steps, self.arrangement.state(), numbers

    def _turn(self, *turns: Turn) -> None:
        turns = (*self.outcome.turns, *turns)
        if self.group.is_first:
            write_json(self.folder / "journal.json", {"turns": [list(turn) for turn in turns]})
        self.outcome.turns = list(turns)

    def _try_turn(self, turn: Turn) -> None:
        """A turn that may as well be taken some steps later, which it is on a full disk."""
        failed = 0
        try:
            if self.group.is_first:
                self._turn(turn)
        except DiskFullError as error:
            if self.remaining is None or self.remaining() <= 0:
                raise
            say(f"{error} The end of training is put off.")
            failed = 1
        if not self.group.largest(failed) and not self.group.is_first:
            self._turn(turn)

    def _decide(self) -> None:
        """Begins the decay when just enough time is left for it, and moves its end on a machine that changes speed."""
        planned = self.config.steps is not None or self.config.turns
        if planned or self.remaining is None or len(self._step_seconds) < 3:
            return
        step, turns = self.outcome.steps, self.outcome.turns
        if turns and step < turns[-1].step:
            return  # resumed before what is journaled: that is repeated first
        possible = self.group.agree(max(1, int(self.remaining() / median(self._step_seconds[-_RECENT:]))))
        if not turns:
            share = self.config.decay_share
            if possible <= max(1.0, share / (1 - share) * step):
                self._try_turn(Turn(step, step + possible))
        elif turns[-1].end - step > possible * 1.05 + 2 or turns[-1].end - step < possible * 0.9 - 5:
            self._try_turn(Turn(step, step + possible))

    def _step(self, log: MetricsLog | NoLog, bar: Any) -> None:
        started = time.perf_counter()
        config, outcome = self.config, self.outcome
        if isinstance(self.source, Follower):
            self.source.follow(config.schedule.left(outcome.steps + 1, outcome.turns), outcome.tokens)
        position = self.source.get_position()
        try:
            batch = self.source.next()
        except AthanorError:
            self._save_before(position, log)
            raise
        except SourceEnded as reason:
            say(f"Training ends after step {outcome.steps}: {reason}")
            outcome.turns = [turn for turn in outcome.turns if turn.step < outcome.steps]
            self._turn(Turn(outcome.steps, outcome.steps))
            return
        loss, metrics, n_targets = self._accumulate(batch)
        if self.scale:
            self.scale.undo(self.model)
        norm = self.arrangement.clip(config.clip)
        outcome.steps += 1
        outcome.places += batch.n_places
        factor = config.schedule.factor(outcome.steps, outcome.turns)
        fault = self._judge(loss, norm)
        if fault is None:
            self.arrangement.step(outcome.steps, factor)
            average = self.arrangement.average
            if average is not None and outcome.turns and outcome.steps > outcome.turns[0].step:
                average.take()
            outcome.tokens += n_targets
        if self.after_step is not None:
            self.after_step(self.model, fault is None)
        self.model.zero_grad(set_to_none=True)
        outcome.skipped += fault == "skipped"
        outcome.spikes += fault == "spike"
        values = (
            {} if fault == "skipped" else {"loss": loss, "gradient_norm": norm, "rate": factor, **self._finite(metrics)}
        )
        if fault is not None:
            values[fault] = 1.0
        if self.evaluate and config.evaluate_every and outcome.steps % config.evaluate_every == 0:
            self._held_out = outcome.steps, self._finite(self.arrangement.evaluate(self.evaluate))
            values |= self._held_out[1]
            self._show_texts(log)
        seconds = time.perf_counter() - started
        self._step_seconds.append(seconds)
        timing = {"tokens_per_second": batch.n_places / seconds, "seconds": seconds}
        if self.peak_rate:
            timing["share_of_peak"] = batch.n_places * self.flops_per_token / seconds / self.peak_rate
        log.write(outcome.steps, values, timing)
        self.beat()
        shown = {k: f"{v:.3f}" for k, v in values.items() if k in ("loss", "reward", "bits_per_byte", "heldout_loss")}
        rate = f"{timing['tokens_per_second']:,.0f} tokens/s"
        if self.peak_rate:
            rate += f", {timing['share_of_peak']:.0%} of the machine's peak"
        bar.update(completed=outcome.steps, **shown, speed=rate)
        if outcome.turns:
            bar.set_total(outcome.turns[-1].end)

    def _save_before(self, position: Mapping[str, Any], log: MetricsLog | NoLog) -> None:
        """Keeps what was learnt before the source failed; alone, for other processes may go on."""
        if self.group.size == 1 and self.outcome.steps:
            self.source.set_position(position)
            with suppress(AthanorError):
                self.checkpoints.save_now(*self._state(), log.sync)

    def _finite(self, values: Mapping[str, float]) -> dict[str, float]:
        """Those that can be noted: files hold no others."""
        found = {name: value for name, value in values.items() if math.isfinite(value)}
        if lost := sorted(set(values) - set(found)):
            say(f"Step {self.outcome.steps}: {', '.join(lost)} is no finite number, and is not noted.")
        return found

    def _show_texts(self, log: MetricsLog | NoLog) -> None:
        if self.write is not None and self.tensorboard is not None and self.group.is_first:
            log.show(self.outcome.steps, self.write(self.model))

    def _judge(self, loss: float, norm: float) -> Fault | None:
        """What `UpdateWatch` says; but a loss scale that was too large says nothing about training."""
        step, scale = self.outcome.steps, self.scale
        if scale is None:
            return self.watch.judge(step, loss, norm)
        finite = math.isfinite(loss) and math.isfinite(norm)
        overflowed = not finite and scale.value > 1
        if overflowed:
            say(f"Step {step} is left out: fp16 overflowed at a loss scale of {scale.value:g}.")
        scale.update(finite)
        return "skipped" if overflowed else self.watch.judge(step, loss, norm)

    def _accumulate(self, batch: Batch) -> tuple[float, dict[str, float], int]:
        """Gradients of the mean loss over the whole batch, micro-batch by micro-batch.

        The mean is over what the objective counts: the batch's targets, nearly always. Where it counts otherwise, which
        only shows at the end, the gradients are scaled then.
        """
        n_targets = batch.n_targets
        if n_targets == 0:
            raise AthanorError(
                f"Batch {self.outcome.steps + 1} has no target to learn from.",
                "Check the loss mask of the training data.",
            )
        # What is exchanged is the mean over processes: it becomes the mean over all targets.
        divisor = n_targets / (self.group.size * (self.scale.value if self.scale else 1))
        total, counted, sums = 0.0, 0, dict[str, float]()
        parts = self.arrangement.share(batch, self.config.micro_rows)
        with casting_once() if len(parts) > 1 and self.arrangement.holds_weights else nullcontext():
            for number, part in enumerate(parts, start=1):
                with self.arrangement.accumulating(last=number == len(parts)):
                    with autocast(self.config.precision, self.group.device):
                        loss = self.arrangement.loss(part.to(self.group.device))
                    (loss.sum / divisor).backward()
                total += float(loss.sum.detach())
                counted += loss.count
                for name, value in loss.metrics.items():
                    sums[name] = sums.get(name, 0.0) + value
        total, all_counted, *values = self.group.sums([total, counted, *sums.values()])
        counted, sums = int(all_counted), dict(zip(sums, values, strict=True))
        if counted not in (0, n_targets):
            for parameter in self.model.parameters():
                if parameter.grad is not None:
                    parameter.grad *= n_targets / counted
        counted = counted or n_targets
        metrics = {name: value / counted for name, value in sums.items()}
        return total / counted, {**metrics, **batch.metrics}, n_targets
