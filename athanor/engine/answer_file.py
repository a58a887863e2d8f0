"""A file of prompts into a file of answers, many at a time; begun again after an interruption, it goes on where it was.

Both are JSON lines. Answers stand in the order of their prompts, and each carries a fingerprint of what was asked, so
that a file is never continued with other prompts, settings or weights.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from athanor.base.errors import AthanorError, DataError
from athanor.base.files import fingerprint, read_jsonl
from athanor.base.progress import progress
from athanor.engine.constraint import KEYWORDS, constraint_of
from athanor.engine.language_model import LanguageModel, Underway
from athanor.engine.sampling import Sampling

_Line = tuple[int, Any, Any, dict[str, Any]]  # its number, id, prompt and constraint
_AHEAD = 256  # prompts that are submitted before the first of them is answered


@dataclass(frozen=True)
class Answered:
    """prompts: in the file. before: answered when it began. refused: that the model could not read."""

    prompts: int
    before: int
    refused: int
    tokens: int


def answer_file(
    lm: LanguageModel, name: str, source: Path, target: Path, changes: Mapping[str, Any], chat: bool = False
) -> Answered:
    """Answers every line of `source` in `target`.

    A line is a string, or an object with "prompt" (a text) or "messages" (a conversation), and, if wanted, "id" and a
    constraint of its own ("any_json", "json_schema", "regex", "choices" or "grammar"). chat: texts are messages to be
    answered. name: of the model. Raises DataError for lines that are nothing of this, or a
    target that belongs to something else.
    """
    settings = lm.sampling(changes)
    lines = [_read(line, number, source, chat) for number, line in _lines(source)]
    prints = [fingerprint([name, prompt, own, asdict(settings)]) for _, prompt, own in lines]
    done = _answered(target, prints)
    tokens, refused = sum(line.get("tokens", 0) for line in done), sum("error" in line for line in done)
    rest = [(i, *lines[i]) for i in range(len(done), len(lines))]
    with target.open("a", encoding="utf-8") as file, progress("Answering", total=len(rest), unit="prompt") as bar:
        for number, answer in zip(range(len(done), len(lines)), _answers(lm, rest, settings), strict=True):
            file.write(json.dumps({**answer, "asked": prints[number]}, ensure_ascii=False) + "\n")
            file.flush()
            tokens, refused = tokens + answer.get("tokens", 0), refused + ("error" in answer)
            bar.update(1)
    return Answered(len(lines), len(done), refused, tokens)


def _lines(source: Path) -> Iterator[tuple[int, Any]]:
    """Numbered; the last one need not end in a line break."""
    try:
        content = source.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{source} cannot be read ({error}).", "Give a file of JSON lines in UTF-8.") from None
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        try:
            yield number, json.loads(line)
        except ValueError as error:
            raise DataError(f"Line {number} of {source} is not JSON ({error}).", "Write a JSON value a line.") from None


def _read(line: Any, number: int, source: Path, chat: bool) -> tuple[Any, Any, dict[str, Any]]:
    """The id, the prompt and the constraint of a line."""
    found = line if isinstance(line, dict) else {"prompt": line}
    prompt = found.get("messages", found.get("prompt"))
    if not (isinstance(prompt, str) and "messages" not in found) and not (
        isinstance(prompt, list) and "messages" in found
    ):
        raise DataError(
            f"Line {number} of {source} has no prompt.",
            'A line is a text, {"prompt": "…"} or {"messages": […]}, as JSON.',
        )
    if isinstance(prompt, str) and chat:
        prompt = [{"role": "user", "content": prompt}]
    return found.get("id"), prompt, {name: found[name] for name in KEYWORDS if name in found}


def _answered(target: Path, prints: Sequence[str]) -> list[dict[str, Any]]:
    """What `target` holds already; a line that was cut off is taken away."""
    if not target.exists():
        return []
    content = target.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        target.write_bytes(whole)
    found = read_jsonl(target) if whole else []
    if len(found) > len(prints) or any(
        not isinstance(line, dict) or line.get("asked") != asked for line, asked in zip(found, prints, strict=False)
    ):
        raise DataError(
            f"{target} holds something else than the beginning of these answers.",
            "The same model, prompts and settings continue it; choose another name for others.",
        )
    return found


def _answers(lm: LanguageModel, lines: Sequence[_Line], settings: Sampling) -> Iterator[dict[str, Any]]:
    """In order; what the model cannot read gives an error in place of an answer."""
    under_way: deque[tuple[dict[str, Any], Underway | None]] = deque()
    rest = iter(lines)
    try:
        while True:
            while len(under_way) < _AHEAD and (line := next(rest, None)) is not None:
                under_way.append(_begin(lm, line, settings))
            if not under_way:
                return
            head, work = under_way[0]
            if work is not None:
                replies = work.replies()
                head["text"] = replies[0].text if settings.n == 1 else [reply.text for reply in replies]
                reasons = [reply.finish_reason for reply in replies]
                head["finish_reason"] = reasons[0] if settings.n == 1 else reasons
                head["tokens"] = sum(len(reply.tokens) for reply in replies)
            under_way.popleft()
            yield head
    finally:
        for _, work in under_way:
            if work is not None:
                work.cancel()


def _begin(lm: LanguageModel, line: _Line, settings: Sampling) -> tuple[dict[str, Any], Underway | None]:
    number, name, prompt, own = line
    head: dict[str, Any] = {"index": number} if name is None else {"index": number, "id": name}
    try:
        return head, lm.submit(prompt, replace(settings, constraint=constraint_of(own)) if own else settings)
    except AthanorError as error:
        return {**head, "error": str(error)}, None
