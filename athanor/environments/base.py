"""What a problem and an environment are, and how an answer is checked.

An environment turns (seed, split, level, index) into a problem, scores a reply, and can write the reply it would like
to see; evaluation, reinforcement learning and fine-tuning data all draw from the same object. Held-out and training
problems are disjoint by construction: which side an instance belongs to is decided by a hash of its canonical form
(the operands without their order, the letters without the wording), so no seed, template or language can carry it
across.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal, Protocol

import numpy as np

from athanor.base.errors import DataError, RecipeError
from athanor.base.randomness import generator, key

Split = Literal["train", "heldout"]
Language = Literal["en", "zh"]
LANGUAGES: tuple[Language, ...] = ("en", "zh")
HELD_OUT_SHARE = 0.2
_MAX_REDRAWS = 10_000


@dataclass(frozen=True)
class Problem:
    """A question with one right answer.

    meta["instance"]: the canonical form that decides the split, e.g. "addition:3+47".
    meta["solution"]: the assistant's text to train on; it ends with `answer`.
    """

    prompt: str
    answer: str
    task: str
    level: int
    language: str
    meta: Mapping[str, str] = field(default_factory=dict, hash=False)


class Environment(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def levels(self) -> range: ...

    def problem(self, seed: int, level: int, index: int, split: Split) -> Problem: ...

    def reward(self, problem: Problem, text: str) -> float: ...

    def partial(self, problem: Problem, text: str) -> float: ...

    def solution(self, problem: Problem) -> str: ...


@dataclass(frozen=True)
class Instance:
    """One drawn instance: `form` names the list of templates, `fields` fills them."""

    canonical: str
    form: str
    fields: Mapping[str, str]
    answer: str
    solution: str


@dataclass(frozen=True)
class ProceduralEnvironment:
    """An environment whose instances are drawn at random and worded by templates.

    draw: (random, level, language) -> Instance. templates: form -> wordings, with the instance's fields in braces.
    accepts: (text, answer) -> whether the reply is right.
    """

    name: str
    levels: range
    draw: Callable[[np.random.Generator, int, Language], Instance]
    templates: Mapping[str, tuple[str, ...]]
    accepts: Callable[[str, str], bool] = field(default_factory=lambda: ends_with_answer)

    def problem(self, seed: int, level: int, index: int, split: Split) -> Problem:
        """Problem number `index` of this seed, split and level; a pure function of them.

        Raises RecipeError for a level that the environment does not have.
        """
        if level not in self.levels:
            raise RecipeError(
                f"Environment {self.name} has no level {level}.", f"Choose from {self.levels[0]} to {self.levels[-1]}."
            )
        random = generator(seed, "environment", self.name, split, level, index)
        for _ in range(_MAX_REDRAWS):
            language = LANGUAGES[int(random.integers(len(LANGUAGES)))]
            instance = self.draw(random, level, language)
            canonical = f"{self.name}:{instance.canonical}"
            if is_held_out(canonical) == (split == "heldout"):
                wordings = self.templates[instance.form]
                prompt = wordings[int(random.integers(len(wordings)))].format_map(instance.fields)
                meta = {"instance": canonical, "solution": instance.solution}
                return Problem(prompt, instance.answer, self.name, level, language, meta)
        raise DataError(f"Environment {self.name} has no {split} instance at level {level}.")

    def reward(self, problem: Problem, text: str) -> float:
        """1.0 when the reply is right, else 0.0 (see `ends_with_answer`)."""
        return float(self.accepts(text, problem.answer))

    def partial(self, problem: Problem, text: str) -> float:
        """1.0 when right; otherwise how alike the final part of the reply and the answer are, at most 0.9."""
        if self.accepts(text, problem.answer):
            return 1.0
        wanted = normalise(problem.answer)
        given = re.split(_MARKER, normalise(text))[-1].strip(" .。!\"'")[: 4 * len(wanted) + 16]
        return 0.9 * difflib.SequenceMatcher(None, given, wanted, autojunk=False).ratio()

    def solution(self, problem: Problem) -> str:
        return problem.meta["solution"]


def is_held_out(canonical: str, share: float = HELD_OUT_SHARE) -> bool:
    """Whether this canonical instance belongs to the held-out side, whatever the seed."""
    return key(0, "held out", canonical) % 10_000 < share * 10_000


def normalise(text: str) -> str:
    """The last line that is not blank: NFKC, case folded, runs of white space as one space."""
    lines = [line for line in text.splitlines() if line.strip()]
    last = lines[-1] if lines else ""
    return " ".join(unicodedata.normalize("NFKC", last).casefold().split())


_MARKER = r"(?:^|[=:]|\b(?:so|is|are|equals)\b|[得是为])"


@lru_cache(maxsize=4096)
def _answer_pattern(answer: str) -> re.Pattern[str]:
    return re.compile(_MARKER + r" ?[\"'“‘「]?" + re.escape(answer) + r"[\"'”’」]? ?[.。!]?$")


def ends_with_answer(text: str, answer: str) -> bool:
    """Whether the last line of `text` is the answer, alone or after an explanation.

    Tolerated: case, width and spacing, quotation marks around the answer, one final stop, and any text before it that
    ends with "=", ":", "so", "is", "are", "equals", 得, 是 or 为. Nothing else: "104 or 105", "x g o d" for "g o d" and
    "-5" for "5" are wrong.
    """
    return _answer_pattern(normalise(answer)).search(normalise(text)) is not None


def pick(random: np.random.Generator, values: tuple[str, ...]) -> str:
    return values[int(random.integers(len(values)))]


def pick_distinct(random: np.random.Generator, values: tuple[str, ...], count: int) -> list[str]:
    return [values[int(i)] for i in random.permutation(len(values))[:count]]
