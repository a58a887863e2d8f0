"""`python -m athanor.evaluation.report FILE` says whether a `report.json` is complete: exit code 0, or 2 with what is
missing, wrong or not measured, one line a key."""

from __future__ import annotations

import sys

from athanor.base.errors import AthanorError
from athanor.base.files import read_json
from athanor.evaluation.report import check_report, not_measured


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print("Usage: python -m athanor.evaluation.report FILE", file=sys.stderr)
        return 2
    try:
        report = read_json(arguments[0])
    except AthanorError as error:
        print(error, file=sys.stderr)
        return 2
    problems = check_report(report) or [f"{key}: not measured" for key in not_measured(report)]
    print("\n".join(problems) or f"{arguments[0]} is complete.")
    return 2 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
