"""Tasks in words: copying a phrase, sorting numbers, numbers in words, and reading a small text that holds the answer.

A level is the number of words, numbers, digits and facts respectively. Chinese numbers follow the usual reading
(105 is 一百零五, 110 is 一百一十); English ones the American (one hundred five), the British "and" is accepted.
"""

from __future__ import annotations

import re

import numpy as np

from athanor.environments.base import Instance, Language, ProceduralEnvironment, ends_with_answer, pick, pick_distinct
from athanor.environments.vocabulary import COLOURS, NAMES, NAMES_ZH, THINGS, WORDS, WORDS_ZH

_UNITS = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
]
_TENS = ["_", "_", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_DIGITS_ZH = "零一二三四五六七八九"


def number_in_english(number: int) -> str:
    """0 to 9999: "three thousand twenty-one"."""
    if number < 20:
        return _UNITS[number]
    if number < 100:
        return _TENS[number // 10] + (f"-{_UNITS[number % 10]}" if number % 10 else "")
    size, name = (1000, "thousand") if number >= 1000 else (100, "hundred")
    rest = number % size
    return f"{_UNITS[number // size]} {name}" + (f" {number_in_english(rest)}" if rest else "")


def number_in_chinese(number: int) -> str:
    """0 to 9999: 三千零二十一; ten to nineteen without the leading 一."""
    if number < 10:
        return _DIGITS_ZH[number]
    if number < 20:
        return "十" + (_DIGITS_ZH[number % 10] if number % 10 else "")
    text = "".join(_DIGITS_ZH[int(digit)] + ("千百十"[place - 4] if digit != "0" and place < 4 else "")
                   for place, digit in enumerate(str(number).zfill(4), 1))  # fmt: skip
    return re.sub("零+", "零", text).strip("零")


def _accepts_number_words(text: str, answer: str) -> bool:
    return ends_with_answer(re.sub(r"\band\s", "", text, flags=re.IGNORECASE), answer)


def _draw_copying(random: np.random.Generator, level: int, language: Language) -> Instance:
    if language == "zh":
        phrase = "".join(pick(random, WORDS_ZH) for _ in range(level))
    else:
        phrase = " ".join(pick(random, WORDS) for _ in range(level))
    return Instance(phrase, language, {"phrase": phrase}, phrase, phrase)


def _draw_sorting(random: np.random.Generator, level: int, language: Language) -> Instance:
    numbers = [int(number) for number in random.permutation(100)[:level]]
    answer = " ".join(map(str, sorted(numbers)))
    label = {"en": "Sorted", "zh": "排序"}[language]
    return Instance(answer, language, {"numbers": " ".join(map(str, numbers))}, answer, f"{label}: {answer}")


def _draw_number_words(random: np.random.Generator, level: int, language: Language) -> Instance:
    number = int(random.integers(20 if level == 2 else 10 ** (level - 1), 10**level))
    words = number_in_english(number) if language == "en" else number_in_chinese(number)
    if random.integers(2):
        return Instance(str(number), f"{language}:words", {"number": str(number)}, words, words)
    return Instance(str(number), f"{language}:digits", {"words": words}, str(number), str(number))


def _draw_reading(random: np.random.Generator, level: int, language: Language) -> Instance:
    names = pick_distinct(random, NAMES if language == "en" else NAMES_ZH, level)
    things = [THINGS[int(i)] for i in random.permutation(len(THINGS))[:level]]
    colours = [COLOURS[int(i)] for i in random.permutation(len(COLOURS))[:level]]
    asked = int(random.integers(level))
    question = ("owner", "thing", "colour")[int(random.integers(3))]
    (thing, measure, thing_zh), (colour, colour_zh) = things[asked], colours[asked]
    if language == "en":
        facts = [f"{n} has a {c[0]} {t[0]}." for n, t, c in zip(names, things, colours, strict=True)]
        answers = {"owner": names[asked], "thing": f"a {colour} {thing}", "colour": colour}
        fields = {"text": " ".join(facts), "name": names[asked], "thing": thing}
    else:
        facts = [f"{n}有一{t[1]}{c[1]}的{t[2]}。" for n, t, c in zip(names, things, colours, strict=True)]
        answers = {"owner": names[asked], "thing": f"一{measure}{colour_zh}的{thing_zh}", "colour": colour_zh}
        fields = {"text": "".join(facts), "name": names[asked], "thing": thing_zh}
    canonical = f"{' '.join(sorted(facts))} {question} {names[asked]}"
    return Instance(canonical, f"{language}:{question}", fields, answers[question], answers[question])


COPYING = ProceduralEnvironment(
    "copying",
    range(1, 7),
    _draw_copying,
    {
        "en": ("Repeat: {phrase}", "Repeat after me: {phrase}", 'Say "{phrase}"', 'Copy this: "{phrase}"'),
        "zh": ("重复：{phrase}", "请跟我说：{phrase}", "请说“{phrase}”", "抄写：{phrase}"),
    },
)
SORTING_NUMBERS = ProceduralEnvironment(
    "sorting_numbers",
    range(2, 8),
    _draw_sorting,
    {
        "en": (
            "Sort these numbers: {numbers}",
            "Put in ascending order: {numbers}",
            "Order from small to large: {numbers}",
        ),
        "zh": ("把这些数字排序: {numbers}", "按从小到大排列: {numbers}", "从小到大排序: {numbers}"),
    },
)
NUMBER_WORDS = ProceduralEnvironment(
    "number_words",
    range(2, 5),
    _draw_number_words,
    {
        "en:words": ("Write {number} in words.", "How do you say {number} in English?", "{number} in words?"),
        "en:digits": ("Write {words} in digits.", "Which number is {words}?", "{words} in digits?"),
        "zh:words": ("用汉字写出{number}。", "{number}用中文怎么说？", "把{number}写成汉字。"),
        "zh:digits": ("把{words}写成数字。", "{words}是哪个数字？", "用数字写出{words}。"),
    },
    _accepts_number_words,
)
READING = ProceduralEnvironment(
    "reading",
    range(1, 6),
    _draw_reading,
    {
        "en:owner": ("{text} Who has the {thing}?", "Text: {text}\nQuestion: Who has a {thing}?"),
        "en:thing": ("{text} What does {name} have?", "Text: {text}\nQuestion: What does {name} have?"),
        "en:colour": ("{text} What color is the {thing}?", "Text: {text}\nQuestion: Which color is {name}'s {thing}?"),
        "zh:owner": ("{text}谁有{thing}？", "短文：{text}\n问题：{thing}是谁的？"),
        "zh:thing": ("{text}{name}有什么？", "短文：{text}\n问题：{name}有什么？"),
        "zh:colour": ("{text}{thing}是什么颜色？", "短文：{text}\n问题：{name}的{thing}是什么颜色？"),
    },
)
