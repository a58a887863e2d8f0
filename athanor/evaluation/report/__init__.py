"""The report card: one checked dictionary becomes `report.json`, `report.md`, `report.html` and its plots."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from athanor.base.errors import AthanorError
from athanor.base.files import atomic_folder, write_json, write_text
from athanor.evaluation.report.schema import SCHEMA_VERSION, check_report, not_measured, parse_report

__all__ = ["SCHEMA_VERSION", "check_report", "not_measured", "write_report"]


def write_report(report: Mapping[str, Any], run_folder: Path | str) -> None:
    """Writes the report's files into the run folder, whose stages' logs give the training curves.

    Equal report and logs give equal bytes. `report.html`, which people open first, is written last.
    Raises AthanorError when the report does not follow the schema; nothing is written then.
    """
    from athanor.evaluation.report.figures import draw_figures, read_logs
    from athanor.evaluation.report.html import render_html
    from athanor.evaluation.report.markdown import PLOT_FOLDER, render_markdown
    from athanor.evaluation.report.sections import page

    run_folder = Path(run_folder)
    checked, problems = parse_report(report)
    if checked is None:
        listed = "; ".join(problems[:5]) + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")
        raise AthanorError(f"The report does not follow its schema: {listed}.", "docs/report.md describes every key.")
    plots = draw_figures(checked, read_logs(run_folder))
    content = page(checked, plots, not_measured(report))
    with atomic_folder(run_folder / PLOT_FOLDER) as folder:
        for plot in plots.values():
            (folder / f"{plot.name}.svg").write_text(plot.drawing.file, encoding="utf-8")
    write_json(run_folder / "report.json", report)
    write_text(run_folder / "report.md", render_markdown(content))
    write_text(run_folder / "report.html", render_html(content, plots))
