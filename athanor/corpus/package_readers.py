"""Readers for the texts inside the default packages: each turns one archive member into documents.

They undo what packaging did to the text (hard-wrapped lines, leftover markup, the quotation marks and colons that the
idiom table lost) and change nothing else. `meta` keeps the fields that question-and-answer pairs are derived from.
"""

from __future__ import annotations

import csv
import html
import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from typing import Any

from athanor.base.errors import DataError
from athanor.corpus.cutting import cut, unwrap
from athanor.corpus.document import Document, valid_unicode
from athanor.corpus.packages import Source

Reader = Callable[[Source, str, bytes], Iterator[Document]]


def _document(source: Source, name: str, text: str, **meta: Any) -> Document:
    return Document(valid_unicode(text), f"{source.name}/{name}", source.name, source.licence, source.language, meta)


def _damaged(source: Source, member: str, error: Exception) -> DataError:
    return DataError(
        f"{member} in {source.package.filename} is not what {source.name} expects ({type(error).__name__}: {error}).",
        "Remove the package from the cache, so that it is fetched again.",
    )


def books(source: Source, member: str, content: bytes) -> Iterator[Document]:
    """Plain text of a book, lines wrapped at about 70 characters."""
    title = PurePosixPath(member).stem
    name = re.split(r",| of | - ", title.removeprefix("Fairy Tales of Hans Christian "))[0]
    for i, text in enumerate(cut(unwrap(content.decode("utf-8-sig")))):
        yield _document(source, f"{name}#{i:04d}", text, title=title)


def summaries(source: Source, member: str, content: bytes) -> Iterator[Document]:
    """{title: {title, extract, description, topic}}"""
    for entry in json.loads(content).values():
        title, extract = entry["title"], entry["extract"]
        meta = {key: entry[key] for key in ("title", "description", "topic") if entry.get(key)}
        if meta.get("topic") == "Uncategorized":
            del meta["topic"]
        yield _document(source, title, f"{title}\n\n{extract}", **meta)


def recipes(source: Source, member: str, content: bytes) -> Iterator[Document]:
    """{page: {title, ingredients: [...], steps: [...]}}"""
    for recipe in json.loads(content).values():
        title = recipe["title"]
        ingredients = "\n".join(f"- {_clean_wiki(item)}" for item in recipe["ingredients"])
        steps = "\n".join(f"{i}. {_clean_wiki(step)}" for i, step in enumerate(recipe["steps"], 1))
        yield _document(source, title, f"{title}\n\nIngredients:\n{ingredients}\n\nSteps:\n{steps}", title=title)


def _clean_wiki(text: str) -> str:
    text = re.sub(r"<ref[^>]*/>|<ref[^>]*>.*?(?:</ref>|$)|</?[a-z]+ ?/?>", "", text)
    text = re.sub(r"\[\[(?:[^\]|]*\|)?([^\]|]*)\]\]", r"\1", html.unescape(text))
    text = re.sub(r" ?\(\s*\)", "", text)
    return re.sub(r"(\w)/\)", r"\1)", text).strip()


def passages(source: Source, member: str, content: bytes) -> Iterator[Document]:
    """One JSON object a line; its `passage`, once, without the questions. "Title -- text" becomes two paragraphs."""
    seen = set()
    for line in content.decode("utf-8").splitlines():
        passage = json.loads(line)["passage"].removesuffix("CANNOTANSWER").strip()
        if passage in seen:
            continue
        seen.add(passage)
        title, found, body = passage.partition(" -- ")
        text = _typeset(f"{title}\n\n{body}" if found and len(title) < 120 else passage)
        yield _document(source, f"{len(seen) - 1:05d}", text)


def _typeset(text: str) -> str:
    """The passages' TeX-like ``quotes'' and double hyphens as characters."""
    return text.replace("``", '"').replace("''", '"').replace("--", "–")


def chapters(source: Source, member: str, content: bytes) -> Iterator[Document]:
    """A list of chapters, each with its title as first line and indented paragraphs."""
    for number, chapter in enumerate(json.loads(content), 1):
        paragraphs = [line.strip() for line in chapter.split("\n")]
        for i, text in enumerate(cut("\n\n".join(line for line in paragraphs if line))):
            yield _document(source, f"{number:03d}#{i}", text)


def idioms(source: Source, member: str, content: bytes) -> Iterator[Document]:
    """A table (word, pinyin, explanation, derivation, example); each row becomes one explanatory paragraph."""
    for number, row in enumerate(csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline=""))):
        word, pinyin, explanation = row["word"], row["pinyin"], _restore_quotes(row["explanation"])
        parts = [f"成语“{word}”（{pinyin}）的意思是：{_sentence(explanation)}"]
        if row["derivation"] != "无":
            parts.append(f"出处：{_sentence(_restore_source(row['derivation']))}")
        example = "" if row["example"] == "无" else _example(row["example"], word)
        if example:
            parts.append(f"例句：{example}")
        meta = {"word": word, "pinyin": pinyin, "explanation": explanation} | ({"example": example} if example else {})
        yield _document(source, f"{number:05d}-{word}", "".join(parts), **meta)


_QUOTED_WORD = re.compile(r"(同|见|参见|亦作|又作|也作|亦称|又称|也说|犹|称为|叫做|叫|谓|即)([^，。；、：“”]{2,9})”")
_LOCATOR = r"(?:第?[〇零一二三四五六七八九十百]+[回折卷章出齣场]|卷[一二三四五六七八九十百]+|[上中下]篇?)?"
_QUOTED_PASSAGE = re.compile(rf"(《[^》]+》{_LOCATOR})：?([^“”《》曰云谓]+)”")


def _restore_quotes(text: str) -> str:
    """The table lost every opening quotation mark: put back the evident ones, drop the closing marks left alone."""
    text = _QUOTED_WORD.sub(r"\1“\2”", text.replace("◇", "。后"))
    depth, kept = 0, []
    for character in text:
        depth += character == "“"
        if character == "”":
            if not depth:
                continue
            depth -= 1
        kept.append(character)
    return "".join(kept).strip()


def _restore_source(text: str) -> str:
    return _restore_quotes(_QUOTED_PASSAGE.sub(r"\1：“\2”", text))


def _example(text: str, word: str) -> str:
    """ "sentence with ～★author《book》" → "sentence with the word（author《book》）"."""
    sentence, _, origin = text.replace("～", word).partition("★")
    if sentence.startswith("[上接"):
        return ""
    sentence = _sentence(_restore_quotes(sentence))
    return f"{sentence}（{origin.strip('。 ')}）" if origin and sentence else sentence


def _sentence(text: str) -> str:
    return text if not text or text[-1] in "。！？”…" else f"{text}。"


READERS: dict[str, Reader] = {
    "books": books,
    "summaries": summaries,
    "recipes": recipes,
    "passages": passages,
    "chapters": chapters,
    "idioms": idioms,
}


def read_source(source: Source, member: str, content: bytes) -> Iterator[Document]:
    """Documents of one member. Raises DataError when it does not have the form its reader expects."""
    try:
        yield from READERS[source.reader](source, member, content)
    except (ValueError, KeyError, TypeError, AttributeError, csv.Error, RecursionError) as error:
        raise _damaged(source, member, error) from error
