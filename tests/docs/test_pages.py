"""Generated pages are up to date."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from athanor.models.families import families
from tests.models.family_rows import DECODERS, ENCODERS, PAIRS

ROOT = Path(__file__).parents[2]
FAMILIES, TUTORIALS = ROOT / "athanor" / "models" / "families", ROOT / "docs" / "tutorials"


def test_the_page_of_families_is_what_its_script_writes(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "families_page.py"), str(tmp_path / "models.md")]
    subprocess.run(command, check=True, cwd=ROOT)
    assert (tmp_path / "models.md").read_text() == (ROOT / "docs" / "models.md").read_text(), "run the script again"


def test_the_page_of_families_names_every_row() -> None:
    rows = {**DECODERS, **ENCODERS, **PAIRS}
    page = (ROOT / "docs" / "models.md").read_text()
    named = re.findall(r"^\| \S+ \| (.+?) \| (\w+) \| [^|]+ \| 1e-\d+ \|$", page, re.M)
    assert named == [(name, architecture) for name, (architecture, _) in rows.items()]
    compared = {architecture for _, architecture in named}
    others = [family for family in families().values() if family.name != "qwen3_ngrams"]  # which nobody else computes
    assert all(compared & set(family.architectures) for family in others)


def test_the_family_that_is_shown_is_the_one_there_is() -> None:
    family, row = re.findall(r"^```py\n(.*?)^```", (TUTORIALS / "adding-a-family.md").read_text(), re.M | re.S)
    assert family == (FAMILIES / "granite.py").read_text()
    there = (ROOT / "tests" / "models" / "family_rows.py").read_text().splitlines()
    assert all(line in there for line in row.splitlines() if line.strip() not in ("", "..."))


@pytest.mark.parametrize("name", ["granite", "stablelm", "starcoder2"])
def test_a_family_of_llamas_kind_takes_fewer_than_60_lines(name: str) -> None:
    assert len((FAMILIES / f"{name}.py").read_text().splitlines()) < 60


def test_the_page_of_performance_shows_what_was_measured(tmp_path: Path) -> None:
    common = {"bench": "loading", "metric": "time", "unit": "s", "target": None, "peer": 4.0, "met": True}
    rows = [{**common, "value": 2.0, "ratio": 0.5}, {**common, "value": 1.5, "ratio": 0.375}]
    source, page = tmp_path / "rows.jsonl", tmp_path / "performance.md"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [sys.executable, str(ROOT / "benchmarks" / "performance_page.py"), str(source), str(page)]
    subprocess.run(command, check=True)
    text = page.read_text()
    assert "`athanor bench loading`" in text
    assert "| metric | value | unit | peer | ratio | met |" in text
    assert "| time | 1.5 | s | 4 | 0.375 | yes |" in text
    assert "| time | 2 |" not in text


def test_the_page_of_generating_names_all_settings_as_the_help_does() -> None:
    from athanor.cli.sampling import SETTINGS

    named = re.findall(r"^\| `--(\S+)` \| (.+) \|$", (ROOT / "docs" / "generating.md").read_text(), re.M)
    assert named == [(name.replace("_", "-"), text) for name, (_, text) in SETTINGS.items()]


def test_metrics_of_one_thing_share_a_line_where_the_benchmark_says_so(tmp_path: Path) -> None:
    row = {"bench": "format_quality", "target": None, "peer": None, "ratio": None, "met": None}
    rows = [
        {**row, "metric": f"{what}: {measure}", "value": value, "unit": unit}
        for what, values in {"fp32": (1.5, 0.0), "int8": (1.25, 0.004)}.items()
        for (measure, unit), value in zip((("size", "MB"), ("KL", "")), values, strict=True)
    ]
    source, page = tmp_path / "rows.jsonl", tmp_path / "performance.md"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "performance_page.py"), str(source), str(page)], check=True
    )
    assert "| metric | size, MB | KL |" in page.read_text()
    assert "| int8 | 1.25 | 0.004 |" in page.read_text()
