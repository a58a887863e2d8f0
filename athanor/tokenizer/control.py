"""The control tokens: ids that mean something to the machinery and that no text can produce.

They follow the merges at the end of the vocabulary, in this order, and spare ones fill it to a multiple of 64, so that
a later stage can give one a meaning without resizing the model.
"""

from __future__ import annotations

END_OF_TEXT = "<|endoftext|>"
"""Ends a document in pre-training; also the padding token."""
TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"
TOOL_CALL = "<tool_call>"
TOOL_CALL_END = "</tool_call>"
TOOL_RESPONSE = "<tool_response>"
TOOL_RESPONSE_END = "</tool_response>"
THINK = "<think>"
THINK_END = "</think>"
FIM_PREFIX = "<|fim_prefix|>"
FIM_MIDDLE = "<|fim_middle|>"
FIM_SUFFIX = "<|fim_suffix|>"
MASK = "<|mask|>"

NAMED = (
    END_OF_TEXT,
    TURN_START,
    TURN_END,
    TOOL_CALL,
    TOOL_CALL_END,
    TOOL_RESPONSE,
    TOOL_RESPONSE_END,
    THINK,
    THINK_END,
    FIM_PREFIX,
    FIM_MIDDLE,
    FIM_SUFFIX,
    MASK,
)

SAID = frozenset({END_OF_TEXT, TURN_END, TOOL_CALL, TOOL_CALL_END, THINK, THINK_END})
"""Those that an assistant's answer may hold."""

CONTROL_TOKENS = 64
"""How many ids are set aside at least: the named ones and, with those that exist today, 51 spare ones.

Objectives of pre-training have given some of the spare ones a meaning."""


CLASSIFY, SEPARATE = "<|spare_0|>", "<|spare_1|>"
"""Around the texts of an encoder: before the first, and after each."""
REGULAR, SEQUENTIAL, EXTREME = "<|spare_2|>", "<|spare_3|>", "<|spare_4|>"
"""What a mixture of denoisers says before a text: how it is corrupted."""
SENTINELS = tuple(f"<|spare_{index}|>" for index in range(5, CONTROL_TOKENS - len(NAMED)))
"""Stand for the hidden spans of a text, in order."""


def control_tokens(count: int = CONTROL_TOKENS) -> list[str]:
    """The named control tokens followed by spare ones, `count` in all."""
    return [*NAMED, *(f"<|spare_{index}|>" for index in range(count - len(NAMED)))]
