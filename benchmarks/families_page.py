"""Writes docs/models.md from the families there are. Not a benchmark itself: run it with python."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

from athanor.models.families import families
from athanor.models.gguf.architectures import ARCHITECTURES

HEAD = """# Families of models

Made by `python benchmarks/families_page.py`. Each family is a file in `athanor/models/families`: how its `config.json`
is read and written, and how its weights are named; the forward pass is the same for all. Every row is compared with
transformers in `tests/models/test_families.py`: logits, padding on both sides, the cache step by step, and the folder
saved here and loaded there, within 1e-4 in fp32. A setting that a family is not known to have is refused by name.

| family | architectures | GGUF | what is special |
|---|---|---|---|
"""


def page() -> str:
    gguf = {architecture.huggingface for architecture in ARCHITECTURES.values()}
    rows = []
    for name, family in sorted(families().items()):
        module = import_module(family.read.__module__)
        about = " ".join((module.__doc__ or "").split())
        reads = "yes" if gguf & set(family.architectures) else ""
        rows.append(f"| {name} | {', '.join(family.architectures)} | {reads} | {about} |")
    return HEAD + "\n".join(rows) + "\n"


if __name__ == "__main__":
    place = Path(sys.argv[1] if len(sys.argv) > 1 else "docs/models.md")
    place.write_text(page(), encoding="utf-8")
