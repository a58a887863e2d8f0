"""What a page of the report is made of; `sections` fills these, `html` and `markdown` write them out."""

from __future__ import annotations

from dataclasses import dataclass

from athanor.evaluation.report.figures import Plot


@dataclass(frozen=True)
class Value:
    """A figure, the few words below it, and the stage whose colour it has."""

    figure: str
    label: str = ""
    stage: str = ""


@dataclass(frozen=True)
class KeyNumber:
    """One cell of the strip on top. values: in the order in which they came about."""

    label: str
    values: tuple[Value, ...]
    detail: str
    clock: bool = False  # depends on how fast the machine was


@dataclass(frozen=True)
class Paragraph:
    text: str


@dataclass(frozen=True)
class Table:
    """text_columns: how many columns on the left are text; the others are figures."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    text_columns: int = 1


@dataclass(frozen=True)
class Facts:
    """Label and value pairs."""

    title: str
    rows: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Panels:
    """Plots and tables side by side; small ones four in a row."""

    panels: tuple[Plot | Table, ...]
    small: bool = False


@dataclass(frozen=True)
class Completion:
    language: str
    stage: str
    prompt: str
    text: str


@dataclass(frozen=True)
class Chat:
    """messages: (role, content)."""

    language: str
    stage: str
    messages: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Samples:
    title: str
    samples: tuple[Completion | Chat, ...]


@dataclass(frozen=True)
class Verbatim:
    """Folded away until asked for."""

    title: str
    text: str


Block = Paragraph | Table | Facts | Panels | Samples | Verbatim


@dataclass(frozen=True)
class Section:
    slug: str
    title: str
    lead: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Page:
    title: str
    subtitle: str
    key_numbers: tuple[KeyNumber, ...]
    sections: tuple[Section, ...]
    closing: str
