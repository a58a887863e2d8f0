"""A file of prompts into a file of answers, many at a time; begun again after an interruption, it goes on where it was.

Both are JSON lines. Answers stand in the order of their prompts, and each carries a fingerprint of what was asked, and
of whom, so that a file is never continued with other prompts, settings or weights.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from athanor.base.errors import AthanorError, DataError
from athanor.base.files import fingerprint, read_jsonl
from athanor.base.progress import progress
from athanor.engine.constraint import KEYWORDS
from athanor.engine.language_model import LanguageModel, Reply, Underway
from athanor.engine.sampling import Sampling
from athanor.engine.source_model import SourceModel, between

_AHEAD = 256  # prompts that are submitted before the first of them is answered


@dataclass(frozen=True)
class Answered:
    """prompts: in the file. before: answered when it began. refused: that the model could not read."""

    prompts: int
    before: int
    refused: int
    tokens: int


def answer_file(
    lm: LanguageModel,
    identity: Sequence[str],
    source: Path,
    target: Path,
    changes: Mapping[str, Any],
    chat: bool = False,
) -> Answered:
    """Answers every line of `source` in `target`.

    A line is a string, or an object with "prompt" (a text) or "messages" (a conversation), and, if wanted, "id", which
    is handed through, the languages "from" and "to" where the model knows several, and settings of `Sampling` or a
    constraint that count for this line instead of `changes`.
    chat: texts are messages to be answered. identity: what tells the model, as it computes, from others.
    Raises DataError for lines that are nothing of this, or a target that belongs to something else.
    """
    lines = [_read(line, f"Line {number} of {source}", lm, changes, chat) for number, line in _lines(source)]
    prints = [fingerprint([*identity, line.prompt, asdict(line.settings), *line.spoken]) for line in lines]
    done = _answered(target, prints)
    tokens, refused = sum(line.get("tokens", 0) for line in done), sum("error" in line for line in done)
    rest = list(enumerate(lines))[len(done) :]
    with target.open("a", encoding="utf-8") as file, progress("Answering", total=len(rest), unit="prompt") as bar:
        for number, answer in zip(range(len(done), len(lines)), _answers(rest), strict=True):
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


def told(reply: Reply) -> dict[str, Any]:
    """What is written of an answer: its text, and the log-probabilities that were asked for."""
    said: dict[str, Any] = {"text": reply.text, "finish_reason": reply.finish_reason}
    if reply.score is not None:
        said |= {"score": reply.score, "logprob": sum(reply.logprobs)}
    if reply.top:
        each = zip(reply.tokens, reply.logprobs, reply.top, strict=True)
        said["logprobs"] = [
            {"token": token, "logprob": logprob, "top": [asdict(one) for one in top]} for token, logprob, top in each
        ]
    if reply.prompt_logprobs:
        said["prompt_logprobs"] = reply.prompt_logprobs
    return said


@dataclass(frozen=True)
class _Line:
    """lm: which answers it. spoken: what tells its languages from others', nothing where there are none."""

    id: Any
    prompt: Any
    settings: Sampling
    lm: LanguageModel
    spoken: tuple[tuple[int, ...], ...] = ()


def _read(line: Any, place: str, lm: LanguageModel, changes: Mapping[str, Any], chat: bool) -> _Line:
    found = dict(line) if isinstance(line, dict) else {"prompt": line}
    both = "prompt" in found and "messages" in found
    prompt = found.pop("messages" if "messages" in found else "prompt", None)
    if both or not isinstance(prompt, list if isinstance(line, dict) and "messages" in line else str):
        raise DataError(
            f"{place} has no prompt, or two.", 'A line is a text, {"prompt": "…"} or {"messages": […]}, as JSON.'
        )
    if isinstance(prompt, str) and chat:
        prompt = [{"role": "user", "content": prompt}]
    name = found.pop("id", None)
    has_own = bool(found)
    if any(keyword in found for keyword in KEYWORDS):  # a line's constraint counts instead of that of all
        changes = {setting: value for setting, value in changes.items() if setting not in KEYWORDS}
    try:
        lm = between(lm, found.pop("from", None), found.pop("to", None))
        spoken = (lm.first, lm.begins) if isinstance(lm, SourceModel) else ()
        return _Line(name, prompt, lm.sampling({**changes, **found}), lm, spoken)
    except AthanorError as error:
        hint = f'{error.hint} What is no setting can stand under "id".' if found else error.hint
        raise DataError(f"{place}: {error.message}" if has_own else error.message, hint) from None


def _answered(target: Path, prints: Sequence[str]) -> list[dict[str, Any]]:
    """What `target` holds already; a line that was cut off is taken away."""
    if not target.exists():
        return []
    content = target.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        os.truncate(target, len(whole))  # what is whole is never written anew
    found = read_jsonl(target) if whole else []
    if len(found) > len(prints) or any(
        not isinstance(line, dict) or line.get("asked") != asked for line, asked in zip(found, prints, strict=False)
    ):
        raise DataError(
            f"{target} holds something else than the beginning of these answers.",
            "The same model, prompts and settings continue it; choose another name for others.",
        )
    return found


def _answers(lines: Sequence[tuple[int, _Line]]) -> Iterator[dict[str, Any]]:
    """In order; what the model cannot read gives an error in place of an answer."""
    under_way: deque[tuple[dict[str, Any], Underway | None]] = deque()
    rest = iter(lines)
    try:
        while True:
            while len(under_way) < _AHEAD and (line := next(rest, None)) is not None:
                under_way.append(_begin(*line))
            if not under_way:
                return
            head, work = under_way[0]
            if work is not None:
                head |= _told(work)
            under_way.popleft()
            yield head
    finally:
        for _, work in under_way:
            if work is not None:
                work.cancel()


def _told(work: Underway) -> dict[str, Any]:
    try:
        replies = work.replies()
    except AthanorError as error:
        return {"error": str(error)}
    answers = [told(reply) for reply in replies]
    head = answers[0] if len(answers) == 1 else {key: [a[key] for a in answers] for key in answers[0]}
    return {**head, "tokens": sum(len(reply.tokens) for reply in replies)}


def _begin(number: int, line: _Line) -> tuple[dict[str, Any], Underway | None]:
    head: dict[str, Any] = {"index": number} if line.id is None else {"index": number, "id": line.id}
    try:
        return head, line.lm.submit(line.prompt, line.settings)
    except AthanorError as error:
        return {**head, "error": str(error)}, None
