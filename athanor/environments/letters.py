"""Tasks on single letters: reversing, sorting, counting, spelling; a level is the number of letters.

Letters stand apart (" d o g"), so that byte-pair encoding cannot hide them, and follow a colon both in the prompt and
in the reply: every letter is then the same token, space included, wherever it stands. Counting writes the running count
behind each hit ("b a1 n a2 n a3 so 3"), which turns counting into copying with one small step.
"""

from __future__ import annotations

import string

import numpy as np

from athanor.environments.base import Instance, Language, ProceduralEnvironment, pick
from athanor.environments.vocabulary import WORDS

_ALPHABET = tuple(string.ascii_lowercase)
_VOWELS = tuple("aeiou")
_CONSONANTS = tuple("bcdfghjklmnprstvwz")
_HIT_RATE = 0.35  # share of letters that are the one counted
_LABELS = {
    "reversing": {"en": "Reversed", "zh": "倒序"},
    "sorting": {"en": "Sorted", "zh": "排序"},
    "spelling": {"en": "Spelled", "zh": "拼写"},
    "counting": {"en": "Count", "zh": "计数"},
}


def _labelled(task: str, language: str, text: str) -> str:
    return f"{_LABELS[task][language]}: {text}"


def _draw_reversing(random: np.random.Generator, level: int, language: Language) -> Instance:
    letters = "".join(pick(random, _ALPHABET) for _ in range(level))
    backwards = letters[::-1]
    answer = " ".join(backwards)
    fields = {"letters": " ".join(letters)}
    return Instance(min(letters, backwards), language, fields, answer, _labelled("reversing", language, answer))


def _draw_sorting(random: np.random.Generator, level: int, language: Language) -> Instance:
    letters = [_ALPHABET[int(i)] for i in random.permutation(len(_ALPHABET))[:level]]
    answer = " ".join(sorted(letters))
    fields = {"letters": " ".join(letters)}
    return Instance(answer.replace(" ", ""), language, fields, answer, _labelled("sorting", language, answer))


def _draw_counting(random: np.random.Generator, level: int, language: Language) -> Instance:
    target = pick(random, _ALPHABET)
    letters = [target if random.random() < _HIT_RATE else pick(random, _ALPHABET) for _ in range(level)]
    seen, marked = 0, []
    for letter in letters:
        seen += letter == target
        marked.append(f"{letter}{seen}" if letter == target else letter)
    therefore = {"en": "so ", "zh": "得"}[language]
    solution = _labelled("counting", language, f"{' '.join(marked)} {therefore}{seen}")
    fields = {"letter": target, "letters": " ".join(letters)}
    return Instance(f"{target} in {''.join(letters)}", language, fields, str(seen), solution)


def made_up_word(random: np.random.Generator, length: int) -> str:
    """A pronounceable word: consonants and vowels in turn."""
    vowel = int(random.integers(2))
    return "".join(pick(random, _VOWELS if (i + vowel) % 2 else _CONSONANTS) for i in range(length))


_WORDS_BY_LENGTH = {length: tuple(word for word in WORDS if len(word) == length) for length in range(1, 20)}


def _draw_spelling(random: np.random.Generator, level: int, language: Language) -> Instance:
    real = _WORDS_BY_LENGTH[level]
    word = pick(random, real) if real and random.integers(2) else made_up_word(random, level)
    answer = " ".join(word)
    return Instance(word, language, {"word": word}, answer, _labelled("spelling", language, answer))


REVERSING = ProceduralEnvironment(
    "reversing",
    range(2, 9),
    _draw_reversing,
    {
        "en": ("Reverse these letters: {letters}", "Write backwards: {letters}", "Reverse: {letters}"),
        "zh": ("把这些字母倒过来: {letters}", "倒着写: {letters}", "反转: {letters}"),
    },
)
SORTING_LETTERS = ProceduralEnvironment(
    "sorting_letters",
    range(2, 8),
    _draw_sorting,
    {
        "en": ("Sort these letters: {letters}", "Put in alphabetical order: {letters}", "Order from a to z: {letters}"),
        "zh": ("把这些字母排序: {letters}", "按字母顺序排列: {letters}", "从a到z排序: {letters}"),
    },
)
COUNTING = ProceduralEnvironment(
    "counting",
    range(3, 11),
    _draw_counting,
    {
        "en": ("How many times does {letter} occur in: {letters}", "Count the letter {letter} in: {letters}"),
        "zh": ("下面有几个字母 {letter} : {letters}", "数一数字母 {letter} 的个数: {letters}"),
    },
)
SPELLING = ProceduralEnvironment(
    "spelling",
    range(2, 9),
    _draw_spelling,
    {
        "en": ("Spell the word: {word}", "Spell {word}", "How do you spell {word}?", "List the letters of {word}"),
        "zh": ("拼写单词: {word}", "请拼写 {word}", "单词 {word} 怎么拼写？", "列出 {word} 的字母"),
    },
)
