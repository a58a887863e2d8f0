"""The process of one benchmark: runs the script's `rows()` and writes each as a line of JSON to standard output.

What the script prints itself goes to standard error, so that it cannot mix with the rows.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
from pathlib import Path

from athanor.base.machine import prepare_process


def main(path: str) -> None:
    with open(os.dup(1), "w", encoding="utf-8") as rows:
        os.dup2(2, 1)
        prepare_process()
        sys.path.insert(0, str(Path(path).parent))
        for row in runpy.run_path(path)["rows"]():
            rows.write(json.dumps(row, allow_nan=False) + "\n")
            rows.flush()


if __name__ == "__main__":
    main(sys.argv[1])
