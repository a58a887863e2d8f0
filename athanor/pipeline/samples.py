"""What a model says while it trains, to the same few prompts each time, shown by TensorBoard beside the curves; and
what it says to whole conversations at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from athanor.alignment.rollouts import answer_text
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


def held_conversations(
    model: LanguageModel, tokenizer: Tokenizer, turns: Sequence[Sequence[str]], **sampling: Any
) -> list[list[dict[str, str]]]:
    """What was said to the user's turns, all conversations side by side; one ends early where its context is full."""
    chats: list[list[dict[str, str]]] = [[] for _ in turns]
    for number in range(max(map(len, turns))):
        open_chats = []
        for messages, wanted in zip(chats, turns, strict=True):
            if len(messages) != 2 * number or number >= len(wanted):
                continue
            asked = [*messages, {"role": "user", "content": wanted[number]}]
            if len(model.chat_prompt(asked)) < model.model.config.max_seq_len:
                messages[:] = asked
                open_chats.append(messages)
        for messages, reply in zip(open_chats, model.chat_many(open_chats, **sampling), strict=True):
            messages.append({"role": "assistant", "content": answer_text(tokenizer, reply.tokens)})
    return chats
