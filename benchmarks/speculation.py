"""What guessing tokens gains: SmolLM2-135M-Instruct with speculation against itself without, the same tokens, in turns.

Code that is to be repeated or edited, a summary and a story are written with look-up in int4; the story also in bf16
with the same model in int4 as its draft model. A row's ratio is the median over the turns; the first turn, in which
both measure the machine, does not count.
"""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median
from typing import Any

import torch
from _rows import row

from athanor.base.machine import usable_cores
from athanor.engine.language_model import LanguageModel, load

ISSUE = "D"
MODEL, TURNS, TARGET = "smollm2-135m-instruct", 3, 1.5
CODE = '''
def area(width, height):
    """The area of a rectangle."""
    if width < 0 or height < 0:
        raise ValueError("sides cannot be negative")
    return width * height


def perimeter(width, height):
    """The length around a rectangle."""
    if width < 0 or height < 0:
        raise ValueError("sides cannot be negative")
    return 2 * (width + height)


def describe(width, height):
    print("area:", area(width, height))
    print("perimeter:", perimeter(width, height))
'''
REPORT = """
The furnace of the old pottery was built in 1871 from bricks that were made on the same ground. For eighty years it
was heated with wood from the hills behind the river, and two men watched it day and night, because a kiln that cools
too fast cracks every pot in it. In 1952 the pottery changed to gas. The old furnace was used for storing clay until
1990, when the town bought it and opened a small museum. Today visitors can walk through the firing chamber, see how the
pots were stacked, and buy cups that are still made by hand. Last year 14,000 people came, more than ever before.
"""
ASKED = {
    "repeating code": f"Repeat this code:\n{CODE}",
    "editing code": f"Rename width to w and height to h in this code:\n{CODE}",
    "a summary": f"Summarize this text:\n{REPORT}",
    "a story": "Write a story about an old furnace.",
}


def rows() -> Iterator[dict[str, Any]]:
    torch.set_num_threads(usable_cores())
    pair = load(MODEL, format="int4", speculate="off"), load(MODEL, format="int4", speculate="lookup")
    for what, asked in ASKED.items():
        for temperature in (0.0, 0.7):
            target = TARGET if what != "a story" else None
            yield _row(f"{what}, look-up, temperature {temperature}", *pair, asked, temperature, target)
    pair = load(MODEL, format="bf16", speculate="off"), load(MODEL, format="bf16", speculate=MODEL)
    yield _row("a story, bf16 with int4 as draft, temperature 0.7", *pair, ASKED["a story"], 0.7)


def _row(
    what: str,
    plain: LanguageModel,
    guessing: LanguageModel,
    asked: str,
    temperature: float,
    target: float | None = None,
) -> dict[str, Any]:
    """Tokens a second after the first."""
    settings = {"temperature": temperature, "max_tokens": 192, "min_tokens": 128, "seed": 3}
    turns = []
    for _ in range(TURNS + 1):
        replies = [lm.chat([{"role": "user", "content": asked}], **settings) for lm in (guessing, plain)]
        if replies[0].tokens != replies[1].tokens:
            raise AssertionError("speculation must change nothing of what is said")
        turns.append([reply.timings["tokens_per_second"] for reply in replies])
    ratio = median(on / off for on, off in turns[1:])
    speed, peer = (median(speeds) for speeds in zip(*turns[1:], strict=True))
    found = row(what, speed, "tokens/s", target=target, peer=peer)
    return {**found, "ratio": ratio, "met": None if target is None else ratio >= target}
