"""Writes docs/models.md: the families there are, and the table of the comparisons that the tests have made.

Not a benchmark itself. `python benchmarks/families_page.py --measure` runs the parametrised tests of
`tests/models/test_families.py` first (a minute) and keeps what they found in `benchmarks/families.json`, from which,
with the docstrings of the families, the page is written.
"""

from __future__ import annotations

import json
import math
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from athanor.models.families import families  # noqa: E402
from athanor.models.gguf.architectures import ARCHITECTURES  # noqa: E402
from tests.models.family_rows import BOUND, COMPARED, DECODERS, ENCODERS, PAIRS  # noqa: E402

MEASURED, TESTS = ROOT / "benchmarks" / "families.json", ROOT / "tests" / "models" / "test_families.py"
ROWS = {**DECODERS, **ENCODERS, **PAIRS}
HEAD = """# Families of models

Made by `python benchmarks/families_page.py`. Each family is a file in `athanor/models/families`: how its `config.json`
is read and written, and how its weights are named; the forward pass is the same for all. A setting that a family is not
known to have is refused by name. [Adding a family](tutorials/adding-a-family.md) shows how one is written.

| family | architectures | GGUF | what is special |
|---|---|---|---|
"""
PROOF = """
## What is compared

Each configuration is a small model of transformers with random weights, every one perturbed, that is saved there,
loaded here and compared in fp32 by `tests/models/test_families.py`. The largest difference, relative to the largest
value compared, must be at most {bound:.0e}; the last column is the power of ten that it was found to be below.

{meanings}

| family | configuration | architecture | compared | below |
|---|---|---|---|---|
"""


class _Recorder:
    """A plugin of pytest: the largest difference of each row, by what was compared."""

    def __init__(self) -> None:
        self.found: dict[str, dict[str, float]] = {}

    def pytest_runtest_setup(self, item: Any) -> None:
        of_row = (name for name in ("pair", "encoders", "pairs") if name in item.callspec.params)
        item.user_properties.append(("row", item.callspec.params[next(of_row)]))

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" and report.passed:
            (_, row), *differences = report.user_properties
            for what, difference in differences:
                of_row = self.found.setdefault(row, {})
                of_row[what] = max(difference, of_row.get(what, 0.0))


def measure() -> None:
    """Runs the tests and keeps what they found."""
    import pytest

    recorder = _Recorder()
    chosen = (
        "test_logits or test_padding or test_the_cache or test_there_and_back or test_encoders or test_encoder_decoders"
    )
    if pytest.main([str(TESTS), "-q", "-k", chosen], plugins=[recorder]) != 0:
        raise SystemExit("The tests fail; the page stays as it is.")
    rows = {
        name: {"compared": [what for what in COMPARED if what in found], "below": _power_of_ten(max(found.values()))}
        for name, found in ((name, recorder.found[name]) for name in ROWS)
    }
    MEASURED.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _power_of_ten(difference: float) -> float:
    """The next one above."""
    return float(f"1e{math.floor(math.log10(max(difference, 1e-9))) + 1}")


def page() -> str:
    known = families()
    in_gguf = {name for architecture in ARCHITECTURES.values() for name in architecture.families}
    lines = []
    for name, family in sorted(known.items()):
        about = " ".join((import_module(family.read.__module__).__doc__ or "").split())
        lines.append(f"| {name} | {', '.join(family.architectures)} | {'yes' if name in in_gguf else ''} | {about} |")
    family_of = {architecture: name for name, family in known.items() for architecture in family.architectures}
    measured, proof = json.loads(MEASURED.read_text(encoding="utf-8")), []
    if list(measured) != list(ROWS):
        raise SystemExit("The rows have changed: python benchmarks/families_page.py --measure")
    for row, (architecture, _) in ROWS.items():
        compared, below = ", ".join(measured[row]["compared"]), measured[row]["below"]
        proof.append(f"| {family_of[architecture]} | {row} | {architecture} | {compared} | {below:.0e} |")
    meanings = "\n".join(f"- **{what}**: {meaning}" for what, meaning in COMPARED.items())
    head = PROOF.format(bound=BOUND, meanings=meanings)
    return HEAD + "\n".join(lines) + "\n" + head + "\n".join(proof) + "\n"


if __name__ == "__main__":
    arguments = sys.argv[1:]
    if "--measure" in arguments:
        measure()
    place = next((Path(argument) for argument in arguments if argument != "--measure"), ROOT / "docs" / "models.md")
    place.write_text(page(), encoding="utf-8")
