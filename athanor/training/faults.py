"""What goes wrong while training: updates that must not be made, signals that ask for an end, and what happened beside.

Whether an update is made is a function of the losses so far, all of which a checkpoint keeps, so a resumed run leaves
out the very same ones. What depends on the machine (a process killed, a checkpoint lost) is counted in a file of its
own.
"""

from __future__ import annotations

import math
import signal
import threading
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import median
from types import FrameType
from typing import Any, Literal, Self

from athanor.base.errors import AthanorError
from athanor.base.files import read_json, write_json
from athanor.base.progress import say

_WINDOW = 64  # recent losses that a spike is measured against; judged from half of them on
_DEVIATION = 1.4826  # of a normal distribution, in median absolute deviations
_MOST_NOT_FINITE = 10  # in a row
_MOST_SPIKES = 5  # in a row
Fault = Literal["skipped", "spike"]


class UpdateWatch:
    """Judges each step's loss and gradient before the weights are touched.

    deviations: a loss so many robust standard deviations (from the median absolute deviation) above the median of the
    recent ones is a spike; 0 for never. In 21,000 steps of pre-training and fine-tuning, 6 found none.
    """

    def __init__(self, deviations: float) -> None:
        self.deviations = deviations
        self.recent: deque[float] = deque(maxlen=_WINDOW)
        self.not_finite_in_a_row = self.spikes_in_a_row = 0

    def get_state(self) -> dict[str, Any]:
        rows = {"not_finite_in_a_row": self.not_finite_in_a_row, "spikes_in_a_row": self.spikes_in_a_row}
        return {"recent": list(self.recent), **rows}

    def set_state(self, state: Mapping[str, Any]) -> None:
        self.recent = deque(map(float, state["recent"]), _WINDOW)
        self.not_finite_in_a_row, self.spikes_in_a_row = state["not_finite_in_a_row"], state["spikes_in_a_row"]

    def judge(self, step: int, loss: float, norm: float) -> Fault | None:
        """Why the update of this step is left out, which is said; None for one to be made.

        Raises AthanorError after ten steps in a row that were not finite.
        """
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self._note_not_finite(step, loss, norm)
            return "skipped"
        self.not_finite_in_a_row = 0
        limit = self._limit()
        self.recent.append(loss)
        if loss <= limit:
            self.spikes_in_a_row = 0
            return None
        self.spikes_in_a_row += 1
        if self.spikes_in_a_row <= _MOST_SPIKES:
            say(f"Step {step} is left out, the weights are unchanged: its loss of {loss:.3g} is above {limit:.3g}.")
            return "spike"
        # The weights have not moved meanwhile, so it is the text that has changed, or nothing but training helps.
        say(f"The loss stays at {loss:.3g} since step {step - _MOST_SPIKES}; training goes on from there.")
        self.recent = deque([loss], _WINDOW)
        self.spikes_in_a_row = 0
        return None

    def _limit(self) -> float:
        if not self.deviations or len(self.recent) < _WINDOW // 2:
            return math.inf
        centre = median(self.recent)
        return centre + self.deviations * _DEVIATION * median(abs(loss - centre) for loss in self.recent)

    def _note_not_finite(self, step: int, loss: float, norm: float) -> None:
        self.not_finite_in_a_row += 1
        say(
            f"Step {step} is left out, the weights are unchanged: "
            f"its loss is {loss:.3g} and its gradient norm {norm:.3g}."
        )
        if self.not_finite_in_a_row >= _MOST_NOT_FINITE:
            raise AthanorError(
                f"{_MOST_NOT_FINITE} steps in a row were not finite; training has diverged.",
                'Lower the stage\'s learning rates (such as pretrain.optimizer.muon_lr), or use precision = "fp32"; as '
                "it is, the same command comes to the same end.",
            )


class StopSignals:
    """While it is entered, the first SIGTERM or SIGINT is only noted; a second one ends the process as it always did.

    A signal that the process ignores, as under nohup, stays ignored. Outside the main thread nothing changes.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number in list(self._before):
            signal.signal(number, self._before.pop(number))

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.received = number
        self.__exit__()
        with suppress(RuntimeError):  # the signal came in the middle of another line
            say(f"{signal.Signals(number).name}: stopping after this step; again to stop at once.")


@dataclass
class Incidents:
    """What happened to a training stage beside the steps, over all its processes. resumed: continued after having been
    interrupted. damaged_checkpoints: found unreadable when it continued. missed_checkpoints: could not be written.
    """

    resumed: int = 0
    damaged_checkpoints: int = 0
    missed_checkpoints: int = 0

    def __add__(self, other: Incidents) -> Incidents:
        return Incidents(*(getattr(self, one.name) + getattr(other, one.name) for one in fields(self)))

    @classmethod
    def read(cls, path: Path) -> Incidents | None:
        """None where there is no such file yet; zeros where it is damaged, since it only counts."""
        if not path.exists():
            return None
        try:
            found = read_json(path)["timing"]
            return cls(**{field.name: int(found[field.name]) for field in fields(cls)})
        except (AthanorError, KeyError, TypeError, ValueError):
            return cls()

    def write(self, path: Path) -> None:
        """What depends on the machine stands in a `timing` subtree, as everywhere in a run."""
        with suppress(AthanorError):  # a full disk is told by what matters more
            write_json(path, {"timing": asdict(self)})
