"""Addition, subtraction and comparison of whole numbers; a level is the number of digits of the longer operand.

Replies work column by column from the ones, as in "7+8=15 4+5+1=10 so 105": a small model learns a table of single
columns far sooner than whole sums (Lee et al. 2023, arXiv 2307.03381), and with one token a digit a sum of three digits
stays within about 30 tokens. A sum of single digits is its own column.
"""

from __future__ import annotations

import numpy as np

from athanor.environments.base import Instance, Language, ProceduralEnvironment

_THEREFORE = {"en": "so ", "zh": "得"}


def _number(random: np.random.Generator, digits: int) -> int:
    """Uniform among the numbers of exactly so many digits (0 counts as one digit)."""
    return int(random.integers(10 ** (digits - 1) if digits > 1 else 0, 10**digits))


def _operands(random: np.random.Generator, level: int) -> tuple[int, int]:
    """One number of `level` digits and one of at most as many."""
    return _number(random, level), _number(random, int(random.integers(1, level + 1)))


def _digits(number: int) -> list[int]:
    """Ones first."""
    return [int(digit) for digit in reversed(str(number))]


def _worked(columns: list[str], answer: int, language: str) -> str:
    if len(columns) == 1:
        return columns[0]
    return f"{' '.join(columns)} {_THEREFORE[language]}{answer}"


def addition_columns(a: int, b: int) -> list[str]:
    """("7+8=15", "4+5+1=10") for 47+58; a column that only one number reaches shows that number and the carry."""
    first, second, carry, columns = _digits(a), _digits(b), 0, []
    for place in range(max(len(first), len(second))):
        parts = [digits[place] for digits in (first, second) if place < len(digits)] + [carry] * (carry > 0)
        columns.append("+".join(map(str, parts)) + (f"={sum(parts)}" if len(parts) > 1 else ""))
        carry = sum(parts) // 10
    return columns


def subtraction_columns(a: int, b: int) -> list[str]:
    """("12-7=5", "3-1=2") for 42-17 (a >= b): the borrowed ten is shown where it arrives, the lent one is taken off."""
    first, second, borrow, columns = _digits(a), _digits(b), 0, []
    for place, digit in enumerate(first):
        top = digit - borrow
        bottom = second[place] if place < len(second) else 0
        borrow = int(top < bottom)
        top += 10 * borrow
        columns.append(f"{top}-{bottom}={top - bottom}" if place < len(second) else f"{top}")
    return columns


def _draw_addition(random: np.random.Generator, level: int, language: Language) -> Instance:
    a, b = _operands(random, level)
    if random.integers(2):
        a, b = b, a
    fields = {"a": str(a), "b": str(b)}
    worked = _worked(addition_columns(a, b), a + b, language)
    return Instance(f"{min(a, b)}+{max(a, b)}", language, fields, str(a + b), worked)


def _draw_subtraction(random: np.random.Generator, level: int, language: Language) -> Instance:
    b, a = sorted(_operands(random, level))
    fields = {"a": str(a), "b": str(b)}
    return Instance(f"{a}-{b}", language, fields, str(a - b), _worked(subtraction_columns(a, b), a - b, language))


def _draw_comparing(random: np.random.Generator, level: int, language: Language) -> Instance:
    a, b = _operands(random, level)
    while a == b:
        b = _number(random, level)
    if random.integers(2):
        a, b = b, a
    larger = bool(random.integers(2))
    answer = str(max(a, b) if larger else min(a, b))
    form = f"{language}:{'larger' if larger else 'smaller'}"
    return Instance(f"{min(a, b)},{max(a, b)}", form, {"a": str(a), "b": str(b)}, answer, answer)


ADDITION = ProceduralEnvironment(
    "addition",
    range(1, 6),
    _draw_addition,
    {
        "en": (
            "What is {a}+{b}?",
            "{a}+{b}=?",
            "Add {a} and {b}.",
            "Calculate {a} + {b}.",
            "How much is {a} plus {b}?",
        ),
        "zh": ("{a}+{b}等于多少？", "{a}+{b}=?", "计算{a}+{b}。", "{a}加{b}是多少？", "请算一算：{a}+{b}"),
    },
)
SUBTRACTION = ProceduralEnvironment(
    "subtraction",
    range(1, 6),
    _draw_subtraction,
    {
        "en": (
            "What is {a}-{b}?",
            "{a}-{b}=?",
            "Subtract {b} from {a}.",
            "Calculate {a} - {b}.",
            "How much is {a} minus {b}?",
        ),
        "zh": ("{a}-{b}等于多少？", "{a}-{b}=?", "计算{a}-{b}。", "{a}减{b}是多少？", "请算一算：{a}-{b}"),
    },
)
COMPARING = ProceduralEnvironment(
    "comparing",
    range(1, 6),
    _draw_comparing,
    {
        "en:larger": ("Which is larger, {a} or {b}?", "What is the greater number: {a} or {b}?"),
        "en:smaller": ("Which is smaller, {a} or {b}?", "What is the lesser number: {a} or {b}?"),
        "zh:larger": ("{a}和{b}哪个大？", "{a}和{b}中较大的是哪个？"),
        "zh:smaller": ("{a}和{b}哪个小？", "{a}和{b}中较小的是哪个？"),
    },
)
