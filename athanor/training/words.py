"""Where words and sentences begin in token ids, for masks that hide whole words and pairs that are cut between
sentences.

A token goes on with a word when it begins inside a character, or with a letter right after a letter; so a word is
hidden with all its pieces and no character is ever half hidden. In scripts written without blanks (a character of three
bytes or more: Chinese, Japanese, Thai, Korean) a token that begins a character begins a word.
"""

from __future__ import annotations

import numpy as np

from athanor.tokenizer import Tokenizer

_ENDS = (".", "!", "?", "。", "！", "？", "\n")


class Words:
    """Tables over the vocabulary of a tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        tokens = [b"" if i in tokenizer.control_ids else tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)]
        self._inside = np.array([0x80 <= token[0] < 0xC0 if token else False for token in tokens])
        self._only_inside = np.array([bool(token) and all(0x80 <= byte < 0xC0 for byte in token) for token in tokens])
        self._letter_first = np.array([_is_letter(token[:1]) for token in tokens])
        self._letter_last = np.array([_is_letter(_last_character(token)) for token in tokens])
        ends = tuple(end.encode() for end in _ENDS)
        self._ends_sentence = np.array([token.endswith(ends) for token in tokens])

    def starts(self, ids: np.ndarray) -> np.ndarray:
        """(n,) bool: whether a word begins there; true for the first token."""
        places = np.arange(len(ids))
        whole = np.maximum.accumulate(np.where(self._only_inside[ids], 0, places))  # where its last character begins
        goes_on = self._inside[ids]
        goes_on[1:] |= self._letter_first[ids[1:]] & self._letter_last[ids[whole[:-1]]]
        goes_on[:1] = False
        return ~goes_on

    def sentence_starts(self, ids: np.ndarray) -> np.ndarray:
        """(sentences − 1,) places after the first at which a sentence begins."""
        return np.flatnonzero(self._ends_sentence[ids[:-1]] & ~self._ends_sentence[ids[1:]]) + 1


def _is_letter(character: bytes) -> bool:
    """Of an alphabet: ASCII, or of two bytes; the first byte tells."""
    return bool(character) and (character[:1].isalpha() or 0xC3 <= character[0] < 0xE0)


def _last_character(token: bytes) -> bytes:
    """From the last byte that begins a character."""
    start = len(token) - 1
    while start > 0 and 0x80 <= token[start] < 0xC0:
        start -= 1
    return token[max(start, 0) :]
