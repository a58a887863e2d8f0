"""Every benchmark can at least be started: it takes too long to be run here, and what it imports may move."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "benchmarks"


def test_what_the_benchmarks_import_is_there() -> None:
    names = sorted(path.stem for path in FOLDER.glob("*.py") if not path.stem.startswith("_train_"))  # peers' Python's
    program = f"import sys; sys.path.insert(0, {str(FOLDER)!r})\n" + "".join(f"import {name}\n" for name in names)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "training_quality" in names
