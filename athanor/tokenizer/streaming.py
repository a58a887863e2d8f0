"""Text from tokens that arrive one by one.

A token may end inside a UTF-8 character; nothing of it is shown until it is whole.
"""

from __future__ import annotations

import codecs

from athanor.tokenizer.foreign import ForeignTokenizer
from athanor.tokenizer.tokenizer import Tokenizer


class StreamDecoder:
    """What `push` returns, joined, followed by `finish()`, is exactly `tokenizer.decode_bytes` of all ids, as text.

    `decode` gives the same, but for the blank that some tokenizers put before a whole text: a stream goes on from what
    came before, so it keeps that one.
    """

    def __init__(self, tokenizer: Tokenizer | ForeignTokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        """The text that became certain with this token; often empty inside Chinese characters or emoji."""
        return self._decoder.decode(self._tokenizer.token_bytes(token_id))

    def finish(self) -> str:
        """U+FFFD if the last character stayed unfinished, else nothing. The decoder then starts anew."""
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return rest
