"""The look of the report's plots, and how a matplotlib figure becomes an SVG that fits into a page.

matplotlib draws through its object interface (no global state) with text left as text. Its SVG is then rewritten:
styles become classes (a strict content security policy forbids style attributes), every class name and id is prefixed
with the plot's own name, and the palette becomes CSS variables, so that a plot follows the page into the dark. As a
file of its own it carries the light palette. The bytes depend on the data alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Light values; page.css has the dark ones. Each must differ from all others: it is how a colour is recognised.
PALETTE = {
    "ink": "#2b2a27",
    "muted": "#757067",
    "line": "#e4dfd5",
    "card": "#fffefb",
    "base": "#5f7f9f",
    "sft": "#3f8f80",
    "rl": "#c9643b",
    "control": "#948b7d",
    "corpus": "#b8a77a",
    "tokenizer": "#8c9a5b",
    "shards": "#cbbf9d",
    "evaluate": "#8d7aa8",
}
LARGE, SMALL = (6.4, 3.4), (2.9, 2.1)  # width and height in inches, near the size at which the page shows them
FONT_SIZE = 11

_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
_SETTINGS: Any = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "DejaVu Sans",
    "font.size": FONT_SIZE,
    "axes.unicode_minus": False,
    "path.simplify": False,
}
_SVG, _XLINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}"


@dataclass(frozen=True)
class Drawing:
    """An SVG in two forms: `inline` with its `rules` for the page's style sheet, and `file`, which stands alone."""

    inline: str
    rules: str
    file: str
    height: float  # inches


def new_figure(size: tuple[float, float] = LARGE) -> tuple[Figure, Axes]:
    """One panel in the report's style; size: width and height in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    figure.patch.set_visible(False)
    style_axes(axes)
    return figure, axes


def style_axes(axes: Axes) -> None:
    """The report's style: no box, a base line, faint horizontal lines."""
    axes.patch.set_visible(False)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(PALETTE["line"])
    axes.tick_params(length=0, labelcolor=PALETTE["muted"], pad=5)
    axes.grid(axis="y", color=PALETTE["line"], linewidth=0.8)
    axes.set_axisbelow(True)


def plain_label(text: str, longest: int = 26) -> str:
    """A name for a plot: Latin letters only, so that no plot needs a font that may be missing; long ones are cut."""
    text = "".join(c if c.isprintable() and ord(c) < 0x250 else "?" for c in text)
    return text if len(text) <= longest else text[: longest - 1] + "…"


@contextmanager
def rendering(name: str) -> Iterator[None]:
    """matplotlib's settings for a plot of this name."""
    import matplotlib

    with matplotlib.rc_context({**_SETTINGS, "svg.hashsalt": name}):
        yield


def render(name: str, draw: Callable[[], Figure | None]) -> Drawing | None:
    """What `draw` drew, if there was anything. name: lower-case letters, digits and hyphens; unique on the page."""
    buffer = BytesIO()
    with rendering(name):
        if (figure := draw()) is None:
            return None
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    root = ElementTree.fromstring(buffer.getvalue())
    classes = _rewrite(root, name)
    rules = "".join(f".{label}{{{style}}}\n" for style, label in classes.items())
    body = "".join(ElementTree.tostring(child, encoding="unicode") for child in root)
    view = root.get("viewBox", "")
    inline = f'<svg class="plot" viewBox="{view}" aria-hidden="true">{body}</svg>'
    return Drawing(inline, _follow_page(rules), _stand_alone(view, rules, body), figure.get_figheight())


def _stand_alone(view: str, rules: str, body: str) -> str:
    _, _, width, height = view.split()
    sheet = f"<style>svg{{font-family:{_FONT};stroke-linejoin:round}}\n{rules}</style>"
    background = f'<rect width="100%" height="100%" fill="{PALETTE["card"]}"/>'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="{view}">'
    return f"{head}{sheet}{background}{body}</svg>\n"


def _rewrite(root: Any, name: str) -> dict[str, str]:
    """Strips namespaces and metadata, shortens ids, turns styles into classes; returns {style: class}."""
    for unwanted in (f"{_SVG}metadata", "metadata"):
        for child in root.findall(unwanted):
            root.remove(child)
    root.remove(root.find(f"{_SVG}defs"))  # a style for everything, which the style sheets say themselves
    used = {value for element in root.iter() for key, value in element.attrib.items() if key == f"{_XLINK}href"}
    ids: dict[str, str] = {}
    classes: dict[str, str] = {}
    for element in root.iter():
        element.tag = element.tag.removeprefix(_SVG)
        element.text, element.tail = (element.text or "").strip() or None, None
        if style := _declarations(element.attrib.pop("style", "")):
            element.set("class", classes.setdefault(style, f"{name}-{len(classes)}"))
        found = element.attrib.pop("id", None)
        if found is not None and (f"#{found}" in used or element.tag == "clipPath"):
            element.set("id", ids.setdefault(found, f"{name}-i{len(ids)}"))
        if "d" in element.attrib:
            element.set("d", _short_path(element.attrib["d"]))
    for element in root.iter():
        if reference := element.attrib.pop(f"{_XLINK}href", None):
            element.set("href", "#" + ids[reference.removeprefix("#")])
        if clip := element.get("clip-path"):
            element.set("clip-path", f"url(#{ids[clip.removeprefix('url(#').removesuffix(')')]})")
    return classes


def _declarations(style: str) -> str:
    """The declarations of a style attribute without its font families: text takes the font of the page."""
    kept = []
    for declaration in style.split(";"):
        key, _, value = (part.strip() for part in declaration.partition(":"))
        if key == "font":
            key, value = "font-size", next(word for word in value.split() if word.endswith("px"))
        if key and key != "font-family":
            kept.append(f"{key}:{value}")
    return ";".join(kept)


def _short_path(path: str) -> str:
    return re.sub(r"\d+\.\d+", lambda number: f"{float(number[0]):.2f}".rstrip("0").rstrip("."), " ".join(path.split()))


def _follow_page(rules: str) -> str:
    for name, colour in PALETTE.items():
        rules = rules.replace(colour, f"var(--{name})")
    return rules
