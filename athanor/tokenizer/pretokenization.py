"""How text is cut before merging: the `qwen2` pattern, which transformers, tiktoken and llama.cpp all know.

Merges never cross a cut. Words keep the space before them, digits stand alone (the safer choice for arithmetic in
small models), a run of letters, and so a whole run of Han, is one piece. There is no normaliser: what comes out is what
went in.
"""

from __future__ import annotations

import re

PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

HAN_RUN_LIMIT = 8
"""Longest run of Han, in characters, that stays whole while merges are counted."""

# Ideographs that Unicode calls letters: the basic block, extension A, compatibility, planes 2 and 3.
_LONG_HAN_RUN = re.compile(rf"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003fffd]{{{HAN_RUN_LIMIT + 1},}}")

_WHITESPACE_BLOCK = 50_000


def pre_tokens(text: str) -> list[str]:
    """The pieces of `text`, in order; joined they are `text` again."""
    from tokenizers import Regex, pre_tokenizers

    split = pre_tokenizers.Split(Regex(PATTERN), "isolated")
    return [piece for piece, _ in split.pre_tokenize_str(text)]


def cap_han_runs(text: str) -> list[str]:
    """`text` in parts, cut after every 8 characters inside longer runs of Han. For counting merges only.

    Chinese is written without spaces, so a clause is one piece and the pieces are nearly all different: counting them
    whole costs memory without bound and learns sentences by heart. A cut between two Han characters falls inside one
    match of the pattern and moves no other cut, so counting the parts as separate texts changes nothing else.
    """
    parts = []
    start = 0
    for run in _LONG_HAN_RUN.finditer(text):
        for cut in range(run.start() + HAN_RUN_LIMIT, run.end(), HAN_RUN_LIMIT):
            parts.append(text[start:cut])
            start = cut
    parts.append(text[start:])
    return parts


def has_huge_whitespace_run(text: str) -> bool:
    r"""Whether `text` may hold a run of 100,000 blanks or more (certainly if it does; never below 50,000).

    tiktoken's pattern engine keeps a state for each blank that the look-ahead `\s+(?!\S)` could give back, and panics
    at a million. A run of 100,000 covers a whole aligned block of 50,000, so looking at those is enough, and linear.
    """
    last = len(text) - _WHITESPACE_BLOCK
    return any(text[i : i + _WHITESPACE_BLOCK].isspace() for i in range(0, last + 1, _WHITESPACE_BLOCK))
