"""The report as GitHub-flavoured Markdown, with the plots as SVG files beside it.

Text that is not ours is fenced or escaped, so that it can neither end its block nor become markup. What depends on the
clock stands in the section on time alone.
"""

from __future__ import annotations

import re

from athanor.evaluation.report.blocks import (
    Block,
    Chat,
    Completion,
    Facts,
    Page,
    Panels,
    Paragraph,
    Samples,
    Section,
    Table,
    Verbatim,
)  # fmt: skip
from athanor.evaluation.report.figures import Plot
from athanor.evaluation.report.words import language, printable

PLOT_FOLDER = "plots"


def render_markdown(page: Page) -> str:
    parts = [f"# {_escape(page.title)}", _escape(page.subtitle)]
    rows = [
        (key.label, " → ".join(f"{value.figure} {value.label}".strip() for value in key.values), key.detail)
        for key in page.key_numbers
        if not key.clock
    ]
    parts.append(_table(("", "", ""), tuple(rows), 3))
    parts += [_section(place, section) for place, section in enumerate(page.sections, 1)]
    return "\n\n".join([*parts, _escape(page.closing)]) + "\n"


def _section(place: int, section: Section) -> str:
    parts = [f"## {place}. {section.title}", _escape(section.lead), *(_block(block) for block in section.blocks)]
    return "\n\n".join(filter(None, parts))


def _block(block: Block) -> str:
    match block:
        case Paragraph(text):
            return _escape(text)
        case Table(title, head, rows, text_columns):
            return _titled(title, _table(head, rows, text_columns))
        case Facts(title, rows):
            return _titled(title, _table(("", ""), rows, 2))
        case Panels(panels):
            plots = "\n".join(_image(panel) for panel in panels if isinstance(panel, Plot))
            return "\n\n".join(filter(None, [plots, *(_block(panel) for panel in panels if isinstance(panel, Table))]))
        case Samples(title, samples):
            return _titled(title, "\n\n".join(_sample(sample) for sample in samples))
        case Verbatim(title, text):
            return f"<details><summary>{_escape(title)}</summary>\n\n{_fenced(text)}\n\n</details>"


def _image(plot: Plot) -> str:
    return f"![{plot.title}. {plot.description}]({PLOT_FOLDER}/{plot.name}.svg)"


def _titled(title: str, body: str) -> str:
    return f"### {_escape(title)}\n\n{body}" if title else body


def _sample(sample: Completion | Chat) -> str:
    head = f"*{_escape(sample.stage)}*, {_escape(language(sample.language))}"
    if isinstance(sample, Completion):
        return f"{head}; given:\n\n{_fenced(sample.prompt)}\n\nwritten:\n\n{_fenced(sample.text)}"
    turns = (f"**{_escape(role)}**\n\n{_fenced(content)}" for role, content in sample.messages)
    return "\n\n".join([head, *turns])


def _table(head: tuple[str, ...], rows: tuple[tuple[str, ...], ...], text_columns: int) -> str:
    rule = [":--" if column < text_columns else "--:" for column in range(len(head))]
    lines = [tuple(map(_escape, head)), tuple(rule), *(tuple(map(_escape, row)) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _escape(text: str) -> str:
    """One line of text that Markdown shows as it is."""
    text = " ".join(printable(text).split())
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_{}\[\]|#~!$])", r"\\\1", text)


def _fenced(text: str) -> str:
    """A code block that nothing in it can close."""
    text = printable(text)
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"
