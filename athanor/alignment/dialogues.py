"""Short dialogues from the chatterbot corpus (BSD), English and Chinese.

Only files on the list below are used: the others contradict who the assistant is, joke crudely, or are translated by
machine beyond sense. Two layouts exist: question and answer, and one question with several alternative answers, of
which the first is taken so that a question has one answer.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from athanor.alignment.messages import Conversation, exchange
from athanor.base.errors import DataError
from athanor.corpus.archives import read_member

PACKAGE = "chatterbot-corpus"
LICENCE = "BSD-3-Clause"
_FILES = (
    ("english/greetings", "en"),
    ("english/computers", "en"),
    ("english/tech_support", "en"),
    ("english/trivia", "en"),
    ("chinese/greetings", "zh"),
    ("chinese/trivia", "zh"),
)
_LONGEST = 240
_JUNK = re.compile(r"https?://|www\.|\S+@\S+|[{}<>|\\`]")
# Crude, about celebrities, wrong, or a greeting to which our own small talk has another answer.
_UNFIT = re.compile(
    r"hitler|suicid|shot dead|kill|murder|assassin|drug|nude|\bsex|testicle|fascist|trump|肯尼迪|"
    r"\bNFL\b|jersey|actress|actor|singer|pop star|twitter|rapper|\bwife\b|husband|married|divorce|billboard|oprah|"
    r"britney|"
    r"kanye|kardashian|lohan|smallest unit|vocal cords|scissors|hardest rock|hurt your feelings|"
    r"^(hello|hi\b|greetings|how are|how do you do|top of|what's up|你好|您好|嗨|早上好|欢迎|怎么了|你还好)",
    re.IGNORECASE,
)
_HALF_TO_FULL = str.maketrans({",": "，", "?": "？", "!": "！", ";": "；"})


def _tidy(text: Any, language: str) -> str:
    """One line; Chinese with full-width punctuation; a sentence ends with a stop, a bare answer does not need one."""
    line = " ".join(str(text).split())
    if language == "zh":
        line = re.sub(r" *([,?!;，？！；]) *", r"\1", line).translate(_HALF_TO_FULL)
        return re.sub(r"\.$", "。", line)
    return line[:1].upper() + line[1:]


def _fits(question: str, answer: str) -> bool:
    text = f"{question} {answer}"
    return bool(question and answer) and len(text) <= _LONGEST and not _JUNK.search(text) and not _UNFIT.search(text)


def read_dialogues(archive: Path) -> list[Conversation]:
    """Each question once, with the first answer given to it. Raises DataError for a broken archive."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    answers: dict[str, Conversation] = {}
    for name, language in _FILES:
        member = f"chatterbot_corpus/data/{name}.yml"
        try:
            content = yaml.load(read_member(archive, member), Loader=loader)
            dialogues = content["conversations"]
        except (yaml.YAMLError, KeyError, TypeError) as error:
            raise DataError(f"{member} in {archive} is not the YAML expected ({error}).") from None
        for dialogue in dialogues:
            if not isinstance(dialogue, list) or not 2 <= len(dialogue) <= 12:
                continue
            question, answer = (_tidy(text, language) for text in dialogue[:2])
            if _fits(question, answer):
                found = Conversation(exchange(question, answer), "dialogue", language, PACKAGE, LICENCE)
                answers.setdefault(question.casefold(), found)
    return list(answers.values())
