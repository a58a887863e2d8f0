"""A conversation in the OpenAI message schema, and conversations as JSON lines.

Accepted: an optional system message, then user and assistant messages in turn, each with text. A user's own file may
hold anything; lines that are not such a conversation are skipped and counted by reason, never an error.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from athanor.base.errors import DataError
from athanor.base.files import write_text

OWN_SOURCE, OWN_LICENCE = "athanor", "Apache-2.0"
_HAN = re.compile(r"[\u4e00-\u9fff]")


@dataclass(frozen=True)
class Conversation:
    """messages: {"role": "system" | "user" | "assistant", "content": text} each; the last one is the assistant's."""

    messages: tuple[dict[str, str], ...]
    task: str
    language: str
    source: str = OWN_SOURCE
    licence: str = OWN_LICENCE
    id: str = ""


def exchange(*turns: str, system: str = "") -> tuple[dict[str, str], ...]:
    """User and assistant messages in turn, after the system message if there is one."""
    roles = ("user", "assistant")
    head = ({"role": "system", "content": system},) if system else ()
    return head + tuple({"role": roles[i % 2], "content": turn} for i, turn in enumerate(turns))


def language_of(text: str) -> str:
    """ "zh" when at least a fifth of the characters are Han, else "en"."""
    return "zh" if 5 * len(_HAN.findall(text)) >= max(1, len(text)) else "en"


def prompt_of(messages: Iterable[dict[str, str]]) -> str:
    """What the model is given, as one string without regard to case: decides the split."""
    return "\n".join(message["content"] for message in messages if message["role"] != "assistant").casefold()


def check_messages(value: Any) -> tuple[dict[str, str], ...]:
    """The messages if they are a conversation to learn from; a last unanswered question is dropped.

    Raises ValueError whose text is the reason, fit for counting.
    """
    if not isinstance(value, dict) or not isinstance(value.get("messages"), list):
        raise ValueError('not an object with a list "messages"')
    messages = []
    for message in value["messages"]:
        if not isinstance(message, dict) or message.get("role") not in ("system", "user", "assistant"):
            raise ValueError("a role other than system, user, assistant")
        content = message.get("content")
        if not isinstance(content, str) or not content.strip():
            raise ValueError("a message without text")
        if any("\ud800" <= character <= "\udfff" for character in content):
            raise ValueError("text that is not valid Unicode")
        messages.append({"role": message["role"], "content": content})
    if messages and messages[-1]["role"] == "user":
        messages.pop()
    turns = messages[1:] if messages and messages[0]["role"] == "system" else messages
    if not turns:
        raise ValueError("no answer of the assistant")
    if [turn["role"] for turn in turns] != ["user", "assistant"] * (len(turns) // 2):
        raise ValueError("user and assistant do not take turns")
    return tuple(messages)


def _parse(line: bytes, source: str) -> Conversation:
    try:
        value = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise ValueError("not UTF-8") from None
    except (ValueError, RecursionError):
        raise ValueError("not JSON") from None
    messages = check_messages(value)
    defaults = {
        "task": "user",
        "language": language_of("".join(message["content"] for message in messages)),
        "source": source,
        "licence": "the user's own",
        "id": "",
    }
    given = {name: value[name] for name in defaults if isinstance(value.get(name), str)}
    return Conversation(messages, **(defaults | given))


def read_conversations(path: Path | str) -> tuple[list[Conversation], Counter[str]]:
    """The conversations of a .jsonl file, and how many lines were skipped for each reason.

    Raises DataError when the file cannot be read at all.
    """
    path = Path(path)
    conversations, skipped = [], Counter[str]()
    try:
        with open(path, "rb") as file:
            for line in file:
                if not line.strip():
                    continue
                try:
                    conversations.append(_parse(line, path.name))
                except ValueError as reason:
                    skipped[str(reason)] += 1
    except OSError as error:
        raise DataError(
            f"The conversations {path} cannot be read ({error.strerror}).",
            'Give a .jsonl file of {"messages": [...]} lines.',
        ) from None
    return conversations, skipped


def write_conversations(path: Path | str, conversations: Iterable[Conversation]) -> None:
    """One JSON object a line, in the order given; atomic."""
    lines = (json.dumps(asdict(conversation), ensure_ascii=False, sort_keys=True) for conversation in conversations)
    write_text(path, "".join(f"{line}\n" for line in lines))
