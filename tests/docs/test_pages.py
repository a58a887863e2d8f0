"""Generated pages are up to date."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_page_of_families_is_what_its_script_writes(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "families_page.py"), str(tmp_path / "models.md")]
    subprocess.run(command, check=True, cwd=ROOT)
    assert (tmp_path / "models.md").read_text() == (ROOT / "docs" / "models.md").read_text(), "run the script again"
