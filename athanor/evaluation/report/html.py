"""The report as one HTML file that needs nothing else: no network, no script, its plots inside.

Sample text is what a model wrote and is taken for hostile: jinja2 escapes every value, and a content security policy in
the page allows the one style sheet by its hash and nothing more.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from importlib.resources import files

from athanor.evaluation.report import blocks
from athanor.evaluation.report.blocks import Page
from athanor.evaluation.report.drawing import PALETTE
from athanor.evaluation.report.figures import Plot
from athanor.evaluation.report.words import NOT_MEASURED, printable


def render_html(page: Page, plots: Mapping[str, Plot]) -> str:
    """plots: all that were drawn; their rules go into the one style sheet."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["printable"] = printable
    environment.filters["drawing"] = lambda plot: Markup(plot.drawing.inline)
    environment.tests["kind"] = lambda block, kind: isinstance(block, getattr(blocks, kind))
    style = _style_sheet(plots)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    template = environment.from_string(_resource("page.html"))
    return template.render(page=page, style=Markup(style), style_hash=digest, not_measured=NOT_MEASURED) + "\n"


def _style_sheet(plots: Mapping[str, Plot]) -> str:
    """Made of this package's own words and numbers only, so it stands in the page as it is."""
    colours = "".join(f"--{name}:{colour};" for name, colour in PALETTE.items())
    return f":root{{{colours}}}\n" + _resource("page.css") + "".join(plot.drawing.rules for plot in plots.values())


def _resource(name: str) -> str:
    return files("athanor.evaluation.report").joinpath(name).read_text(encoding="utf-8")
