"""A smaller model that guesses what a larger one with the same vocabulary will say.

It draws with the larger one's settings and noise, at the same places: where the two distributions are alike, so are the
tokens. Its own keys and values of the last few answers are kept, and only what is new is computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from athanor.base.errors import ModelError
from athanor.engine.blocks import BlockPool
from athanor.engine.logits import Adjustment, draw
from athanor.engine.rung import Rung, Segment
from athanor.engine.speculation import Text
from athanor.models.config import ModelConfig
from athanor.tokenizer import Tokenizer
from athanor.tokenizer.foreign import ForeignTokenizer

_CONTEXTS = 4  # of the longest kind that there is room for


@dataclass(eq=False)
class _Kept:
    """tokens: whose keys and values are in the blocks."""

    tokens: np.ndarray
    blocks: list[int]


class DraftModel:
    """config: of the model; texts that it could not read are not guessed. vocab_size: of the one that verifies."""

    def __init__(self, rung: Rung, config: ModelConfig, vocab_size: int) -> None:
        self._rung, self._config, self._vocab_size = rung, config, vocab_size
        blocks = _CONTEXTS * -(-config.max_seq_len // rung.block_size)
        rung.allocate(blocks)
        self._pool = BlockPool(blocks, rung.block_size)
        self._kept: list[_Kept] = []  # the last one used is the last

    def propose(self, text: Text, k: int) -> Sequence[int]:
        k = min(k, self._config.max_seq_len - len(text.tokens))
        if k < 1 or text.tokens.max() >= self._config.vocab_size:
            return []
        kept = self._find(text.tokens)
        self._make_room(kept, len(text.tokens) + k)
        adjustment = Adjustment(text.sampling, text.tokens[: text.n_prompt].tolist(), frozenset())
        for token in text.tokens[text.n_prompt :].tolist() if adjustment.acts(0) else ():
            adjustment.push(token)
        tokens, said = text.tokens, len(text.tokens) - text.n_prompt
        for n in range(k):
            logits = self._fitted(self._compute(kept, tokens))
            if adjustment.acts(said + n):
                adjustment.apply(logits[0], said + n)
            token = int(draw(logits, text.sampling, np.array([text.key], np.uint64), np.array([said + n])).tokens[0])
            adjustment.push(token)
            tokens = np.append(tokens, np.int32(token))
        return tokens[len(text.tokens) :].tolist()

    def _fitted(self, logits: np.ndarray) -> np.ndarray:
        """As wide as the target's: tables of the same tokens may be padded to different lengths."""
        missing = self._vocab_size - logits.shape[1]
        if missing <= 0:
            return logits[:, : self._vocab_size]
        return np.pad(logits, ((0, 0), (0, missing)), constant_values=-np.inf)

    def _compute(self, kept: _Kept, tokens: np.ndarray) -> np.ndarray:
        """(1, vocabulary) logits after all tokens."""
        start = len(kept.tokens)
        blocks = np.array(kept.blocks[: -(-len(tokens) // self._rung.block_size)], dtype=np.int32)
        before = tokens[max(0, start - self._rung.lookback) : start]
        logits = self._rung.forward([Segment(tokens[start:], start, blocks, 1, before)])
        kept.tokens = tokens
        return logits.copy()

    def _find(self, tokens: np.ndarray) -> _Kept:
        """What is kept of the same text, cut to what is the same; the last token is always computed."""
        best = max(self._kept, key=lambda kept: _common(kept.tokens, tokens), default=None)
        if best is None or not _common(best.tokens, tokens) > len(tokens) // 2:
            best = _Kept(tokens[:0], [])
        else:
            self._kept.remove(best)
        best.tokens = tokens[: min(_common(best.tokens, tokens), len(tokens) - 1)]
        self._kept.append(best)
        return best

    def _make_room(self, kept: _Kept, places: int) -> None:
        needed = -(-places // self._rung.block_size) - len(kept.blocks)
        while needed > self._pool.available:  # never all: one text alone always fits
            self._pool.release(self._kept.pop(0).blocks)
        kept.blocks += self._pool.take(needed)


def _common(one: np.ndarray, other: np.ndarray) -> int:
    """Length of the beginning that two texts share."""
    n = min(len(one), len(other))
    different = np.flatnonzero(one[:n] != other[:n])
    return int(different[0]) if len(different) else n


def check_vocabularies(draft: Tokenizer | ForeignTokenizer, target: Tokenizer | ForeignTokenizer) -> None:
    """Raises ModelError unless both have the same tokens."""
    if draft.vocab_size != target.vocab_size or any(
        draft.token_bytes(i) != target.token_bytes(i)
        for i in np.flatnonzero(target.byte_lengths).tolist()
        if draft.byte_lengths[i]
    ):
        raise ModelError(
            f"The draft model's vocabulary, of {draft.vocab_size} tokens, is not that of the model, of "
            f"{target.vocab_size}.",
            "Take a smaller model of the same family.",
        )
