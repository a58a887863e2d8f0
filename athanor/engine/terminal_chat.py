"""A conversation in a terminal, or line by line through a pipe: answers appear as they are made, Ctrl-C stops one.

What is printed cannot drive the terminal: control characters, of the model's text and the user's, are left out. When
the conversation outgrows the model's context, its oldest turns are no longer shown to the model; nothing is forgotten
for `/save`. An answer that was stopped stays in the conversation as far as it was seen.
"""

from __future__ import annotations

import os
import signal
import threading
import unicodedata
from collections.abc import Iterable
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from athanor.base.errors import AthanorError
from athanor.base.files import expanded_path, write_json

if TYPE_CHECKING:
    from athanor.engine.language_model import LanguageModel, Reply

HELP = """\
/help         this list
/reset        forget the conversation (the system message stays)
/system TEXT  give the model a system message; without TEXT: take it away
/save FILE    write the conversation to FILE as JSON
/stats        tokens, speed and use of the context
/quit         leave (or Ctrl-D)
Ctrl-C stops an answer. To say something that begins with /, put a space before it."""

# Besides control characters: those that reorder text, with which a line can be made to look like another.
_REORDERING = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def printable(text: str) -> str:
    """`text` without the characters that a terminal would act on; line breaks and tabs stay."""
    return "".join(
        character
        for character in text
        if character in "\n\t" or (unicodedata.category(character) not in ("Cc", "Cs") and character not in _REORDERING)
    )


class TerminalChat:
    """The conversation and what may be done with it.

    loading: gives the model, perhaps later: the first answer waits for it. sampling: settings as `LanguageModel.chat`
    takes them. answers, notes: where the model, and where we speak.
    """

    def __init__(
        self,
        loading: Future[LanguageModel],
        sampling: dict[str, Any],
        system: str | None,
        answers: TextIO,
        notes: TextIO,
    ) -> None:
        self.loading, self.sampling, self.system = loading, sampling, printable(system or "")
        self.answers, self.notes = answers, notes
        self.history: list[dict[str, str]] = []
        self._left_out = 0  # messages at the start of the history that the model no longer sees
        self._last: Reply | None = None
        self._said = 0
        self._saved: set[Path] = set()
        self._tells_speed = self._waits = False

    @property
    def lm(self) -> LanguageModel:
        return self.loading.result()

    def converse(self, prompt: str = "> ") -> None:
        """Asks at the terminal until the user leaves. Raises what the loading of the model raised."""
        self.loading.add_done_callback(self._interrupt_if_failed)
        self._tells_speed = True
        interrupted = False
        while True:
            try:
                line = self._line(prompt)
            except EOFError:
                self._note("")
                return
            except KeyboardInterrupt:
                self._raise_failure()
                if interrupted:
                    self._note("")
                    return
                interrupted = True
                self._note("\nCtrl-C again or Ctrl-D leaves.")
                continue
            interrupted = False
            try:
                if not self.take(line):
                    return
            except KeyboardInterrupt:
                self._note("(stopped)")
            except AthanorError as error:
                self._raise_failure()
                self._note(str(error))

    def _line(self, prompt: str) -> str:
        self._raise_failure()
        self._waits = True
        try:
            return input(prompt)
        finally:
            self._waits = False

    def _interrupt_if_failed(self, loading: Future[LanguageModel]) -> None:
        if loading.exception() and self._waits and hasattr(signal, "pthread_kill"):
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    def _raise_failure(self) -> None:
        """Ends the conversation where there will be no model."""
        if self.loading.done():
            self.loading.result()

    def answer_lines(self, lines: Iterable[str]) -> None:
        """Answers each line of a pipe or file, the turns of one conversation. Raises AthanorError at one that cannot be
        answered.
        """
        for line in lines:
            if not self.take(line):
                return

    def take(self, line: str) -> bool:
        """Answers or obeys one line; False when the user wants to leave."""
        line = line.rstrip("\r\n")
        if line.startswith("/"):
            try:
                return self._obey(line)
            except AthanorError as error:
                self._note(str(error))
                return True
        text = printable(line).strip()
        if text:
            self.ask(text)
        return True

    def ask(self, text: str) -> None:
        """Streams the answer. Raises AthanorError when the message is too long for the model; it is then not kept."""
        self.history.append({"role": "user", "content": text})
        try:
            messages = self._window()
        except AthanorError:
            self.history.pop()
            raise
        said: list[str] = []
        try:
            for piece in self.lm.stream(messages, **self.sampling):
                said.append(piece.text)
                self.answers.write(printable(piece.text))
                self.answers.flush()
                self._last = piece.reply or self._last
        finally:  # stopped or not, what was seen was said
            self._end_answer("".join(said))
        if self._last:
            self._said += len(self._last.tokens)
            if not any(said):
                self._note("(the model said nothing)")
            elif self._last.finish_reason == "length":
                self._note(f"(cut off after {len(self._last.tokens)} tokens)")
            if self._tells_speed:
                self._note_speed(self._last.timings)

    def _end_answer(self, said: str) -> None:
        if said:
            self.history.append({"role": "assistant", "content": said})
        else:
            self.history.pop()  # a question that nobody answered would stand before the next one
        self.answers.write("\n")
        self.answers.flush()

    def _messages(self) -> list[dict[str, str]]:
        """What the model sees."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, *self.history[self._left_out :]]

    def _window(self) -> list[dict[str, str]]:
        """The messages for the next answer, without the oldest turns as far as needed to leave room for it."""
        context = self.lm.model.config.max_seq_len
        room = context - min(self.lm.sampling(self.sampling).max_tokens, context // 2)
        before = self._left_out
        while (needed := len(self.lm.chat_prompt(self._messages()))) > room and len(self.history) - self._left_out > 2:
            self._left_out += 2
        if needed >= context:
            self._left_out = before
            raise AthanorError(
                f"The message takes {needed} tokens with all that stands around it.",
                f"This model's context holds {context - 1} and the beginning of an answer: shorten the message.",
            )
        if self._left_out > before:
            turns = "turn is" if self._left_out == 2 else f"{self._left_out // 2} turns are"
            self._note(f"(the oldest {turns} left out: the model's context holds {context} tokens)")
        return self._messages()

    def _obey(self, line: str) -> bool:
        command, _, rest = line.partition(" ")
        rest = printable(rest).strip()
        if command in ("/quit", "/exit"):
            return False
        if command == "/help":
            self._note(HELP)
        elif command == "/reset":
            self.history, self._left_out = [], 0
            self._note("The conversation starts anew.")
        elif command == "/system":
            self.system, self._left_out = rest, 0
            self._note("The system message is set." if rest else "There is no system message now.")
        elif command == "/save":
            self._save(rest)
        elif command == "/stats":
            self._note(self._stats())
        else:
            self._note(f"There is no command {command}.\n{HELP}")
        return True

    def _save(self, name: str) -> None:
        if not name:
            raise AthanorError("Where to?", "Say /save FILE.")
        path = expanded_path(name)
        if path.exists() and path not in self._saved:
            raise AthanorError(f"{path} exists already.", "Choose another name.")
        system = [{"role": "system", "content": self.system}] if self.system else []
        try:
            write_json(path, [*system, *self.history])
        except OSError as error:
            raise AthanorError(f"{path} could not be written ({error.strerror}).", "Choose another name.") from None
        self._saved.add(path)
        self._note(f"Saved {len(system) + len(self.history)} messages to {path}.")

    def _stats(self) -> str:
        context = self.lm.model.config.max_seq_len
        used = len(self.lm.chat_prompt(self._messages())) if self._messages() else 0
        lines = [f"context: {used} of {context} tokens, {self._said} tokens said"]
        if self._last:
            timings = self._last.timings
            lines.append(
                f"last answer: {timings['completion_tokens']} tokens to {timings['prompt_tokens']} read, "
                f"{timings['tokens_per_second']:.0f} tokens/s, first token after {timings['first_token_seconds']:.2f} s"
            )
        return "\n".join(lines)

    def _note_speed(self, timings: dict[str, float]) -> None:
        rate = timings["tokens_per_second"]
        text = (
            f"first token after {timings['first_token_seconds']:.2f} s{f', then {rate:.0f} tokens/s' if rate else ''}"
        )
        dims = self.notes.isatty() and os.environ.get("TERM", "dumb") != "dumb" and "NO_COLOR" not in os.environ
        print(f"\x1b[2m{text}\x1b[22m" if dims else text, file=self.notes, flush=True)

    def _note(self, text: str) -> None:
        print(printable(text), file=self.notes, flush=True)
