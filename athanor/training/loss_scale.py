"""A factor on the loss, so that small gradients do not vanish in fp16 (Micikevicius et al. 2018, section 3.2).

torch's own GradScaler wants a torch optimizer and keeps its state on the device; this one is two numbers, which belong
to the checkpoint and are the same in every process.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

_GROWS_AFTER = 2000  # finite steps; with halving and doubling, torch's defaults


@dataclass
class LossScale:
    """value: what losses are multiplied by. finite: how many steps in a row were."""

    value: float = 2.0**16
    finite: int = 0

    def undo(self, model: nn.Module) -> None:
        """Brings the gradients back to the size of the loss itself."""
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(1 / self.value)

    def update(self, finite: bool) -> None:
        self.finite = self.finite + 1 if finite else 0
        if not finite:
            self.value = max(1.0, self.value / 2)
        elif self.finite == _GROWS_AFTER:
            self.value, self.finite = min(2.0**24, self.value * 2), 0

    def get_state(self) -> list[float]:
        return [self.value, self.finite]

    def set_state(self, state: Sequence[float]) -> None:
        self.value, self.finite = float(state[0]), int(state[1])
