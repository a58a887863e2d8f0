"""The training loop: one for pre-training, fine-tuning, and policy optimisation alike.

It asks a source for the next batch, an objective for the loss, and steps the optimizer; it ends after a fixed number of
steps, or on time. What the clock decides is journaled before it takes effect, so a resumed run repeats every decision
and ends with the very bits of one that was never stopped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Protocol

import torch

from athanor.base.errors import AthanorError, RunError
from athanor.base.files import read_json, write_json
from athanor.base.progress import progress, say
from athanor.base.run import MetricsLog, NoLog, damaged
from athanor.models.decoder import Decoder
from athanor.models.precision import autocast
from athanor.training.arrangements import arrange
from athanor.training.batches import Batch
from athanor.training.loss_scale import LossScale
from athanor.training.objectives import Loss
from athanor.training.optimizers import OptimizerConfig
from athanor.training.parallel import ALONE, Group
from athanor.training.schedules import Schedule, Turn

_MOST_SKIPPED_IN_A_ROW = 10
_RECENT = 20  # steps whose median time predicts the next ones
_COUNTERS = ("tokens", "places", "skipped")


class SourceEnded(Exception):  # noqa: N818, an end, not an error
    """Raised by a source that has nothing left to learn from; training ends there, and says why."""


class Source(Protocol):
    """Where batches come from. `next` may raise SourceEnded. `position` is JSON, and all that is needed to continue
    from there.
    """

    def next(self) -> Batch: ...

    def get_position(self) -> dict[str, Any]: ...

    def set_position(self, position: Mapping[str, Any]) -> None: ...


@dataclass(frozen=True)
class LoopConfig:
    """steps: how many updates, or None to end by the clock. decay_share: part of the steps that decays. turns: where an
    earlier run turned, to do the same whatever the clock says.

    micro_rows: rows of a batch that go through the model at a time, in each process. clip: largest joint norm of the
    gradients. precision: "fp32", "bf16", or "fp16" with scaled losses. checkpoint_every, evaluate_every: in steps; 0
    for never (a checkpoint is always written at the end).
    """

    steps: int | None
    micro_rows: int
    optimizer: OptimizerConfig
    schedule: Schedule
    decay_share: float = 0.5
    clip: float = 1.0
    precision: str = "fp32"
    checkpoint_every: int = 0
    evaluate_every: int = 0
    turns: tuple[Turn, ...] = ()


@dataclass
class Outcome:
    """steps: updates done in all. tokens: targets learnt from. places: all that went through the model, prompts and
    padding too. skipped: updates left out because they were not finite."""

    steps: int = 0
    tokens: int = 0
    places: int = 0
    skipped: int = 0
    turns: list[Turn] = field(default_factory=list)


def _read_journal(path: Path) -> list[Turn]:
    if not path.exists():
        return []
    found = read_json(path)
    turns = found.get("turns") if isinstance(found, dict) else None
    if not isinstance(turns, list) or not all(_is_turn(turn) for turn in turns):
        raise damaged(path)
    return [Turn(*turn) for turn in turns]


def _is_turn(turn: Any) -> bool:
    pair = isinstance(turn, list) and len(turn) == 2 and all(type(step) is int for step in turn)
    return pair and 0 <= turn[0] <= turn[1]


class Trainer:
    """One training stage. folder holds checkpoints, journal and logs; remaining() says how many seconds are left.

    objective: (model, batch) → Loss. evaluate: (model) → metrics, called every `evaluate_every` steps.
    beat: called after each step, to note the time spent. identity: what is trained; a checkpoint of another is refused.
    group: the processes that train together, each with the same arguments; sharded: whether each holds only a part of
    the model. The model's weights are then in `whole_model()` alone.
    """

    def __init__(
        self,
        model: Decoder,
        objective: Callable[[Decoder, Any], Loss],
        source: Source,
        config: LoopConfig,
        folder: Path,
        *,
        remaining: Callable[[], float] | None = None,
        evaluate: Callable[[Decoder], Mapping[str, float]] | None = None,
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
        self.peak_rate, self.flops_per_token, self.identity = peak_rate, flops_per_token, identity
        self.arrangement = arrange(model, objective, config.optimizer, group, sharded)
        self.scale = LossScale() if config.precision == "fp16" else None
        self.outcome = Outcome()
        self._step_seconds: list[float] = []
        self._skipped_in_a_row = 0

    def run(self, description: str) -> Outcome:
        """Trains to the end, from wherever the folder's newest checkpoint stands."""
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
            with progress(description, total=outcome.turns[-1].end if outcome.turns else None, unit="step") as bar:
                bar.update(completed=outcome.steps)
                while not self._finished():
                    self._decide()
                    self._step(log, bar)
                    if self.config.checkpoint_every and outcome.steps % self.config.checkpoint_every == 0:
                        log.sync()
                        self._save()
            log.sync()
            self._save(keep=1)
        finally:
            log.close()
        return outcome

    def _finished(self) -> bool:
        turns = self.outcome.turns
        return bool(turns) and self.outcome.steps >= turns[-1].end

    def _resume(self) -> None:
        found = self.arrangement.find(self.folder / "checkpoints")
        if found is not None:
            path, numbers = found
            try:
                if numbers["identity"] != self.identity:
                    raise ValueError("it was made by another one")
                self.arrangement.load(path)
                self.source.set_position(numbers["position"])
                if self.scale:
                    self.scale.set_state(numbers["loss_scale"])
                for name in _COUNTERS:
                    setattr(self.outcome, name, int(numbers[name]))
                self.outcome.steps = int(numbers["step"])
            except (RuntimeError, KeyError, TypeError, ValueError) as error:
                raise RunError(
                    f"The newest checkpoint in {self.folder / 'checkpoints'} does not belong to this stage "
                    f"({str(error).splitlines()[0]}).",
                    "Remove that folder to train the stage again, or start over with --fresh.",
                ) from None
            say(f"Continuing after step {self.outcome.steps}.")
        self.outcome.turns = _read_journal(self.folder / "journal.json")
        if self.outcome.turns:
            return
        if self.config.turns:
            self._turn(*self.config.turns)
        elif self.config.steps is not None:
            steps = self.config.steps
            self._turn(Turn(steps - round(self.config.decay_share * steps), steps))

    def _save(self, keep: int = 2) -> None:
        numbers = {name: getattr(self.outcome, name) for name in _COUNTERS}
        numbers |= {"position": self.source.get_position(), "identity": self.identity}
        if self.scale:
            numbers["loss_scale"] = self.scale.get_state()
        self.arrangement.save(self.folder / "checkpoints", self.outcome.steps, numbers, keep)

    def _turn(self, *turns: Turn) -> None:
        self.outcome.turns += turns
        if not self.group.is_first:
            return
        write_json(self.folder / "journal.json", {"turns": [list(turn) for turn in self.outcome.turns]})

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
                self._turn(Turn(step, step + possible))
        elif turns[-1].end - step > possible * 1.05 + 2 or turns[-1].end - step < possible * 0.9 - 5:
            self._turn(Turn(step, step + possible))

    def _step(self, log: MetricsLog | NoLog, bar: Any) -> None:
        started = time.perf_counter()
        config, outcome = self.config, self.outcome
        try:
            batch = self.source.next()
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
        finite = torch.isfinite(torch.tensor([loss, norm])).all().item()
        if finite:
            self.arrangement.step(outcome.steps, factor)
            outcome.tokens += n_targets
            self._skipped_in_a_row = 0
        else:
            self._skip(loss, norm)
        if self.scale:
            self.scale.update(bool(finite))
        self.model.zero_grad(set_to_none=True)
        values = {"loss": loss, "gradient_norm": norm, "rate": factor, **metrics} if finite else {"skipped": 1.0}
        if self.evaluate and config.evaluate_every and outcome.steps % config.evaluate_every == 0:
            values |= self.arrangement.evaluate(self.evaluate)
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

    def _accumulate(self, batch: Batch) -> tuple[float, dict[str, float], int]:
        """Gradients of the mean loss over the whole batch, micro-batch by micro-batch."""
        n_targets = batch.n_targets
        if n_targets == 0:
            raise AthanorError(
                f"Batch {self.outcome.steps + 1} has no target to learn from.",
                "Check the loss mask of the training data.",
            )
        total, sums = 0.0, dict[str, float]()
        parts = self.arrangement.share(batch, self.config.micro_rows)
        for number, part in enumerate(parts, start=1):
            with self.arrangement.accumulating(last=number == len(parts)):
                with autocast(self.config.precision, self.group.device):
                    loss = self.arrangement.loss(part.to(self.group.device))
                # What is exchanged is the mean over processes: it becomes the mean over all targets.
                (loss.sum / (n_targets / (self.group.size * (self.scale.value if self.scale else 1)))).backward()
            total += float(loss.sum.detach())
            for name, value in loss.metrics.items():
                sums[name] = sums.get(name, 0.0) + value
        total, *values = self.group.sums([total, *sums.values()])
        sums = dict(zip(sums, values, strict=True))
        metrics = {name: value / n_targets for name, value in sums.items()}
        return total / n_targets, {**metrics, **batch.metrics}, n_targets

    def _skip(self, loss: float, norm: float) -> None:
        self.outcome.skipped += 1
        if self.scale and self.scale.value > 1:  # the scale was too large, which says nothing about training
            say(f"Step {self.outcome.steps} is left out: fp16 overflowed at a loss scale of {self.scale.value:g}.")
            return
        self._skipped_in_a_row += 1
        say(
            f"Step {self.outcome.steps} is left out, the weights are unchanged: "
            f"its loss is {loss:.3g} and its gradient norm {norm:.3g}."
        )
        if self._skipped_in_a_row >= _MOST_SKIPPED_IN_A_ROW:
            raise AthanorError(
                f"{_MOST_SKIPPED_IN_A_ROW} steps in a row were not finite; training has diverged.",
                'Lower the learning rates (optimizer.muon_lr, optimizer.embedding_lr), or use precision = "fp32".',
            )
