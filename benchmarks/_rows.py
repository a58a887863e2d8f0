"""One row of a benchmark's table."""

from __future__ import annotations

from typing import Any


def row(
    metric: str, value: float, unit: str, *, target: float | None = None, peer: float | None = None, most: bool = False
) -> dict[str, Any]:
    """ratio is value over peer. met: value reaches the target (or, with `most`, stays within it); without a target, the
    same against the peer; null where there is neither.
    """
    bound = peer if target is None else target
    met = None if bound is None else bool(value <= bound if most else value >= bound)
    ratio = None if peer is None else value / peer
    return {"metric": metric, "value": value, "unit": unit, "target": target, "peer": peer, "ratio": ratio, "met": met}
