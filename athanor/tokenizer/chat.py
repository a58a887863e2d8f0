r"""Conversations to token ids, with the loss mask made in the same breath.

The layout is ChatML: `<|im_start|>role\n…<|im_end|>\n`; a tool call is `<tool_call>\n{JSON}\n</tool_call>` in an
assistant turn, a tool's answer a turn of role `tool`, the tools' descriptions stand in the system turn. Messages follow
OpenAI's schema. Every content is encoded as ordinary text, so that nobody can write a control token, and a
conversation's ids begin with those of its first turns. The saved chat template gives the same ids, with one deviation:
an assistant content whose leading blanks hold a line break is here cut from the `\n` before it, for that is how a model
meets it when it generates.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from athanor.base.errors import TokenizerError
from athanor.tokenizer import control as names
from athanor.tokenizer.foreign import ForeignTokenizer
from athanor.tokenizer.templates import as_json
from athanor.tokenizer.tokenizer import Tokenizer

Message = Mapping[str, Any]
ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True)
class Rendered:
    """ids: the conversation's tokens; mask: True where a token is the assistant's own and is to be learned."""

    ids: list[int]
    mask: list[bool]


def render(
    tokenizer: Tokenizer | ForeignTokenizer,
    messages: Sequence[Message],
    tools: Sequence[Message] | None = None,
    add_generation_prompt: bool = False,
) -> Rendered:
    """Lays out a conversation; with `add_generation_prompt` the assistant's turn is opened at the end.

    The mask is True exactly for what an assistant turn says (its content and tool calls) and for the `<|im_end|>` that
    ends it. Raises TokenizerError naming the message that is wrong.
    """
    check_messages(messages)
    if isinstance(tokenizer, ForeignTokenizer):  # its own template; what is the assistant's is not known
        ids = tokenizer.conversation(messages, tools, add_generation_prompt)
        return Rendered(ids, [False] * len(ids))
    tool_list = _tool_list(tools)
    page = _Page(tokenizer)
    if tool_list and messages[0]["role"] != "system":
        page.turn("system", tool_list)
    for index, message in enumerate(messages):
        role, content = message["role"], message.get("content")
        if role == "assistant":
            _assistant_turn(page, content or "", message.get("tool_calls") or [])
        elif role == "tool":
            _tool_turn(page, str(content))
        elif tool_list and role == "system" and index == 0:
            page.turn(role, f"{content}\n\n{tool_list}")
        else:
            page.turn(role, str(content))
    if add_generation_prompt:
        page.control(names.TURN_START)
        page.text("assistant\n")
    return Rendered(page.ids, page.mask)


def training_example(
    tokenizer: Tokenizer, messages: Sequence[Message], tools: Sequence[Message] | None = None
) -> Rendered:
    """`render` for training. Raises TokenizerError when nothing, or everything, would be learned."""
    rendered = render(tokenizer, messages, tools)
    if not any(rendered.mask):
        raise TokenizerError(
            "The conversation has nothing to learn: no message is the assistant's.", "Add one with role 'assistant'."
        )
    if all(rendered.mask):
        raise TokenizerError("The conversation's loss mask covers every token, the prompt included.")
    return rendered


@dataclass
class _Page:
    """Ids and mask under construction; both only ever grow together."""

    tokenizer: Tokenizer
    ids: list[int] = field(default_factory=list)
    mask: list[bool] = field(default_factory=list)

    def text(self, text: str, learned: bool = False) -> None:
        ids = self.tokenizer.encode(text)
        self.ids += ids
        self.mask += [learned] * len(ids)

    def control(self, name: str, learned: bool = False) -> None:
        self.ids.append(self.tokenizer.control[name])
        self.mask.append(learned)

    def end_turn(self, learned: bool = False) -> None:
        self.control(names.TURN_END, learned)
        self.text("\n")

    def turn(self, role: str, content: str) -> None:
        self.control(names.TURN_START)
        self.text(f"{role}\n{content}")
        self.end_turn()


def _assistant_turn(page: _Page, content: str, tool_calls: Sequence[Message]) -> None:
    page.control(names.TURN_START)
    page.text("assistant\n")
    page.text(f"{content}\n" if content and tool_calls else content, learned=True)
    for index, call in enumerate(tool_calls):
        page.text("\n" if index else "", learned=True)
        page.control(names.TOOL_CALL, learned=True)
        page.text(f"\n{_call_text(call['function'])}\n", learned=True)
        page.control(names.TOOL_CALL_END, learned=True)
    page.end_turn(learned=True)


def _tool_turn(page: _Page, content: str) -> None:
    page.control(names.TURN_START)
    page.text("tool\n")
    page.control(names.TOOL_RESPONSE)
    page.text(f"\n{content}\n")
    page.control(names.TOOL_RESPONSE_END)
    page.end_turn()


def _call_text(function: Message) -> str:
    arguments = function["arguments"]
    written = arguments if isinstance(arguments, str) else as_json(arguments)
    return f'{{"name": {as_json(function["name"])}, "arguments": {written}}}'


def _tool_list(tools: Sequence[Message] | None) -> str:
    for index, tool in enumerate(tools or []):
        function = tool.get("function") if isinstance(tool, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise TokenizerError(
                f"Tool {index} has no function name.",
                'A tool is {"type": "function", "function": {"name": …, "description": …, "parameters": {…}}}.',
            )
    try:
        return "\n".join(["# Tools", *map(as_json, tools)]) if tools else ""
    except (TypeError, ValueError) as error:
        raise TokenizerError(f"The tools cannot be written as JSON ({error}).") from None


def check_messages(messages: Sequence[Message]) -> None:
    """Raises TokenizerError that names the first message which does not follow the schema."""
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes) or not messages:
        raise TokenizerError("The conversation has no messages.", "Give a list with at least one message.")
    unanswered: list[str] = []  # ids of the last assistant turn's calls, in order
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise _bad(index, "is not an object", 'A message is {"role": …, "content": …}.')
        if message.get("role") not in ROLES:
            raise _bad(index, f"has the role {message.get('role')!r}", f"A role is one of {', '.join(ROLES)}.")
        calls = message.get("tool_calls")
        if calls:
            unanswered = _check_calls(index, message["role"], calls)
        content = message.get("content")
        if not isinstance(content, str) and not (calls and content is None):
            found = "no content" if content is None else f"content of type {type(content).__name__}"
            raise _bad(index, f"has {found}", "Content is text; only an assistant with tool_calls may do without.")
        if message["role"] == "tool":
            _check_answer(index, message.get("tool_call_id"), unanswered)


def _check_calls(index: int, role: str, calls: Any) -> list[str]:
    if role != "assistant":
        raise _bad(index, f"has tool_calls but the role {role}", "Only the assistant calls tools.")
    if not isinstance(calls, Sequence) or isinstance(calls, str | bytes):
        raise _bad(index, "has tool_calls that are no list", "Give a list of calls.")
    for call in calls:
        function = call.get("function") if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise _bad(
                index, "has a call without a function name", 'A call is {"function": {"name": …, "arguments": …}}.'
            )
        if not _is_json_object(function.get("arguments")):
            raise _bad(index, f"calls {function['name']} with arguments that are no JSON object", "Give an object.")
    return [str(call["id"]) for call in calls if call.get("id") is not None]


def _check_answer(index: int, call_id: Any, unanswered: list[str]) -> None:
    """Answers carry no id in the layout, so they must come in the order of the calls."""
    if call_id is None or not unanswered:
        return
    if call_id != unanswered[0]:
        raise _bad(index, f"answers tool call {call_id!r}", f"The next call to answer is {unanswered[0]!r}.")
    unanswered.pop(0)


def _is_json_object(arguments: Any) -> bool:
    try:
        value = json.loads(arguments) if isinstance(arguments, str) else json.loads(as_json(arguments))
    except (TypeError, ValueError):
        return False
    return isinstance(value, dict)


def _bad(index: int, what: str, hint: str) -> TokenizerError:
    return TokenizerError(f"Message {index} {what}.", hint)
