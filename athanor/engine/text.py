"""From tokens to text that may be shown: whole characters, and never a part of a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class TokenBytes(Protocol):
    """Of tokens to text one by one, as `StreamDecoder` does it."""

    def push(self, token_id: int) -> str: ...

    def finish(self) -> str: ...


class BeginningOfText:
    """Without the blank that some tokenizers put before a whole text: the answer goes on from nothing."""

    def __init__(self, decoder: TokenBytes) -> None:
        self._decoder, self._begun = decoder, False

    def push(self, token_id: int) -> str:
        return self._first(self._decoder.push(token_id))

    def finish(self) -> str:
        return self._first(self._decoder.finish())

    def _first(self, text: str) -> str:
        if self._begun or not text:
            return text
        self._begun = True
        return text.removeprefix(" ")


class StopText:
    """Withholds what may be the beginning of a stop string."""

    def __init__(self, decoder: TokenBytes, stop: Sequence[str]) -> None:
        self._decoder, self._stop = decoder, stop
        self._held = ""

    def push(self, token: int, watched: bool = True) -> tuple[str, bool]:
        """What may be shown after `token`, and whether a stop string is complete.

        watched: whether stop strings that end here count.
        """
        return self._show(self._decoder.push(token), watched)

    def finish(self, watched: bool = True) -> tuple[str, bool]:
        """What is left at the end, up to a stop string."""
        shown, stopped = self._show(self._decoder.finish(), watched)
        rest = "" if stopped else self._held
        self._held = ""
        return shown + rest, stopped

    def _show(self, text: str, watched: bool) -> tuple[str, bool]:
        if not self._stop:
            return text, False
        self._held += text
        ends = [place for stop in self._stop if (place := self._held.find(stop)) >= 0]
        if ends and watched:
            shown, self._held = self._held[: min(ends)], ""
            return shown, True
        keep = max(_overlap(self._held, stop) for stop in self._stop)
        shown, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return shown, False


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` with which `stop` begins."""
    for n in range(min(len(text), len(stop) - 1), 0, -1):
        if stop.startswith(text[-n:]):
            return n
    return 0
