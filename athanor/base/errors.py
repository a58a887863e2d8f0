"""The one exception family a user meets: a sentence that says what is wrong and where, and a hint that says what to do.

Commands print both and exit with code 2; anything else that escapes is a bug and shows its traceback.
"""

from __future__ import annotations

import signal


class AthanorError(Exception):
    """Something the person at the keyboard can mend.

    message: names the file, field or number that is wrong.
    hint: what would be accepted, or what to do next; may be empty.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()


class RecipeError(AthanorError):
    """A recipe, override or command-line setting that cannot be carried out."""


class DataError(AthanorError):
    """A document, archive, download or dataset that cannot be used."""


class TokenizerError(AthanorError):
    """A tokenizer file or chat template that cannot be used, or a conversation it cannot render."""


class ModelError(AthanorError):
    """A model folder, configuration or weight file that cannot be used."""


class RunError(AthanorError):
    """A run folder that is corrupt, in use, or was made by a newer version."""


class DiskFullError(AthanorError):
    """A disk, quota or largest file size that does not leave room for a file."""


class Stopped(KeyboardInterrupt):
    """A signal asked for an end, and what was done so far is saved."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.signal = number
