"""What a build did, in numbers (`report.json`), and whose text it used (`DATA_LICENSES.md`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from athanor.corpus.document import Document
from athanor.corpus.packages import Source
from athanor.corpus.readers import OwnFiles

Kind = Literal["read", "repaired", "training", "held_out"]


@dataclass
class Count:
    """Documents, and bytes of their text in UTF-8."""

    documents: int = 0
    bytes: int = 0

    def add(self, document: Document, times: int = 1) -> None:
        self.documents += times
        self.bytes += times * document.n_bytes


def _sum(counts: Sequence[Count]) -> Count:
    return Count(sum(count.documents for count in counts), sum(count.bytes for count in counts))


@dataclass
class SourceReport:
    """Counts of one source in one language. `training` counts a repeated document as often as it is written."""

    source: str
    language: str
    read: Count = field(default_factory=Count)
    repaired: Count = field(default_factory=Count)
    training: Count = field(default_factory=Count)
    held_out: Count = field(default_factory=Count)
    dropped: dict[str, Count] = field(default_factory=dict)  # by rule


@dataclass
class TaskReport:
    """An evaluation task: texts looked for, texts too short for that, and what was dropped on its account."""

    texts: int
    ignored: int
    dropped: Count = field(default_factory=Count)


@dataclass
class CorpusReport:
    """Nothing in it depends on the clock: the same build gives the same report."""

    settings: dict[str, Any]
    sources: list[SourceReport] = field(default_factory=list)
    evaluation: dict[str, TaskReport] = field(default_factory=dict)
    skipped: dict[str, int] = field(default_factory=dict)  # by reason: files and lines that could not be read
    skipped_places: list[tuple[str, str]] = field(default_factory=list)

    def total(self, kind: Kind, source: str | None = None, language: str | None = None) -> Count:
        """The sum over sources and languages, or over those named."""
        chosen = [e for e in self.sources if source in (None, e.source) and language in (None, e.language)]
        return _sum([getattr(entry, kind) for entry in chosen])

    def dropped(self) -> dict[str, Count]:
        """By rule, over all sources."""
        rules = sorted({rule for entry in self.sources for rule in entry.dropped})
        return {rule: _sum([e.dropped[rule] for e in self.sources if rule in e.dropped]) for rule in rules}

    def languages(self) -> list[str]:
        return sorted({entry.language for entry in self.sources})

    def to_dict(self) -> dict[str, Any]:
        """As JSON: the fields, and the totals by kind, by language and by rule."""
        kinds: tuple[Kind, ...] = ("read", "repaired", "training", "held_out")
        totals: dict[str, Any] = {kind: asdict(self.total(kind)) for kind in kinds}
        totals["languages"] = {
            language: {kind: asdict(self.total(kind, language=language)) for kind in kinds}
            for language in self.languages()
        }
        totals["dropped"] = {rule: asdict(count) for rule, count in self.dropped().items()}
        return asdict(self) | {"totals": totals}


def licences_text(report: CorpusReport, origins: Sequence[Source | OwnFiles]) -> str:
    """Markdown: one section for each source that gave documents, with package, paths, licence and attribution."""
    sections = [
        "# Data licences\n\nThe text of this corpus, by source. Keep this file with any copy of the text; share-alike\n"
        "licences (CC-BY-SA) bind whoever passes the text itself on.\n"
    ]
    for origin in origins:
        used = [report.total(kind, source=origin.name) for kind in ("training", "held_out")]
        if any(count.documents for count in used):
            amount = f"{used[0].documents} documents ({used[0].bytes} bytes) for training, "
            amount += f"{used[1].documents} ({used[1].bytes} bytes) held out"
            sections.append("\n".join(_section(origin, amount)) + "\n")
    return "\n".join(sections)


def _section(origin: Source | OwnFiles, amount: str) -> list[str]:
    if isinstance(origin, OwnFiles):
        return [
            f"## {origin.name}",
            "",
            "- Licence: your own files; their licence is what you know it to be",
            f"- Used: {amount}",
        ]
    package = origin.package
    return [
        f"## {origin.name}",
        "",
        f"- Package: {package.name} {package.version} (sha256 {package.sha256})",
        *(f"- Path: `{path}`" for path in origin.paths),
        f"- Source: <{origin.url}>",
        f"- Licence: {origin.licence}",
        f"- Attribution: {origin.attribution}",
        f"- Used: {amount}",
    ]
