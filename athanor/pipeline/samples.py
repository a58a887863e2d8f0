"""What a model says while it trains, to the same few prompts each time: shown by TensorBoard beside the curves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from athanor.engine.language_model import LanguageModel, Reply
from athanor.engine.sampling import Sampling
from athanor.models.decoder import Decoder
from athanor.tokenizer import Tokenizer

COMPLETIONS = (("en", "The history of the city"), ("en", "To make the soup,"), ("zh", "却说曹操"), ("zh", "成语"))
"""(language, beginning) of texts to be continued."""
_QUESTIONS = ("Who are you?", "What is 3+4?", "Spell the word river.", "你是谁？")
_TOKENS = 32

Write = Callable[[Decoder], Mapping[str, str]]


def continued(tokenizer: Tokenizer, precision: str, seed: int) -> Write:
    """The beginnings, continued."""
    prompts = [prompt for _, prompt in COMPLETIONS]
    return _write(
        tokenizer, precision, seed, prompts, lambda lm, **how: lm.generate_many(prompts, temperature=0.7, **how)
    )


def answered(tokenizer: Tokenizer, precision: str, seed: int) -> Write:
    """Questions, answered."""
    chats = [[{"role": "user", "content": question}] for question in _QUESTIONS]
    return _write(tokenizer, precision, seed, _QUESTIONS, lambda lm, **how: lm.chat_many(chats, temperature=0.3, **how))


def _write(
    tokenizer: Tokenizer, precision: str, seed: int, prompts: Sequence[str], say: Callable[..., list[Reply]]
) -> Write:
    @torch.no_grad()
    def write(model: Decoder) -> dict[str, str]:
        lm = LanguageModel(model, tokenizer, Sampling(suppress_tokens=tokenizer.never_said), precision)
        replies = say(lm, max_tokens=_TOKENS, repetition_penalty=1.1, seed=seed)
        return {
            f"said/{number}": f"**{prompt}** {reply.text}"
            for number, (prompt, reply) in enumerate(zip(prompts, replies, strict=True), start=1)
        }

    return write
