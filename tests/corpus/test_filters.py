"""The rules on cases whose answer is known, in English and Chinese."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from athanor.corpus.document import Document
from athanor.corpus.filters import (
    Drop,
    decontaminate,
    evaluation_index,
    exact_duplicates,
    minimum_length,
    repair,
    repetition,
)
from athanor.corpus.terms import gram_hashes, terms

ENGLISH = (
    "The harbour lay quiet in the grey light before dawn, and only the gulls were awake. An old man mended a net on "
    "the quay while his grandson counted boats. Far out a lamp swung on a mast; somebody was coming home after three "
    "weeks of fishing beyond the banks, with ice in the rigging and little in the hold but stories."
)
CHINESE = (
    "清晨的港口十分安静，只有海鸥已经醒来。一位老人坐在码头上修补渔网，他的孙子在旁边数着来往的船只。"
    "远处桅杆上挂着一盏灯，不知是谁在海上漂泊了三个星期之后终于要回家了，船舱里没有多少鱼，却装满了故事。"
)


def document(text: str, language: str = "en") -> Document:
    return Document(text, "test/1", "test", "none", language)


@pytest.mark.parametrize(
    ("broken", "mended"),
    [
        ("one\r\ntwo\rthree", "one\ntwo\nthree"),
        ("a  \nb\t\nc\u3000\nd", "a\nb\nc\nd"),
        ("a\n\n\n\n\n\nb", "a\n\n\nb"),
        ("nul\x00 and bell\x07 and mark\ufeff", "nul and bell and mark"),
        ("cafÃ© â€œquotedâ€\u009d", "café “quoted”"),
        ("ä¸\xadæ–‡", "中文"),
        ("fish &amp; chips", "fish & chips"),
        ("lone \ud800 surrogate", "lone \ufffd surrogate"),
        ("两端\u2028空行\x0c换页", "两端\n空行\n换页"),
    ],
)
def test_repair_mends(broken: str, mended: str) -> None:
    assert repair(document(broken)).text == mended


@pytest.mark.parametrize(
    "text",
    [
        "“curly” ‘quotes’…",
        "ｆｕｌｌ　ｗｉｄｔｈ１２３",
        "ﬁne ligature",
        "e\u0301 decomposed",
        "½ cup — 20 °C",
        "阿鼻地狱（ā bí dì yù）",
        ENGLISH,
    ],
)
def test_repair_leaves_the_writers_choices(text: str) -> None:
    original = document(text)
    assert repair(original) is original


@example("aÄ\x08\x8b\x8d")
@given(st.text(st.characters(max_codepoint=0x3000)))
def test_repair_settles(text: str) -> None:
    once = repair(document(text))
    once.text.encode("utf-8")
    assert repair(once).text == once.text


def test_minimum_length_counts_words_and_characters() -> None:
    assert minimum_length(document(ENGLISH)) == document(ENGLISH)
    assert minimum_length(document("Far too short.")).reason == "minimum_length"
    assert len(terms("不求闻达 means 3 things")) == 7
    assert isinstance(minimum_length(document(CHINESE, "zh"), minimum=60), Document)


def test_repetition_keeps_prose_and_drops_loops() -> None:
    for text, language in ((ENGLISH, "en"), (CHINESE, "zh")):
        assert isinstance(repetition(document(text, language)), Document)
    loop = ENGLISH.split(".")[0]
    assert isinstance(repetition(document("\n".join([ENGLISH] + [loop] * 5))), Drop)
    assert isinstance(repetition(document("buy cheap watches now " * 20)), Drop)
    assert isinstance(repetition(document(CHINESE + "点击这里查看更多精彩内容，" * 12, "zh")), Drop)
    assert isinstance(repetition(document(CHINESE + CHINESE, "zh")), Drop)


def test_repetition_keeps_a_definition_that_names_its_subject() -> None:
    text = (
        "Shortcrust pastry\n\nShortcrust pastry is a type of pastry often used for the base of a tart, quiche or pie."
    )
    assert isinstance(repetition(document(text)), Document)


def test_exact_duplicates_ignore_case_and_space() -> None:
    seen: set[bytes] = set()
    assert isinstance(exact_duplicates(document("One  text.\n"), seen), Document)
    assert exact_duplicates(document("one text."), seen) == Drop("exact_duplicates")
    assert isinstance(exact_duplicates(document("one text!"), seen), Document)


def test_planted_overlap_is_found_and_clean_text_kept() -> None:
    question = "Which of these rivers flows north through eleven countries before it reaches the inland sea at last?"
    chinese = "下列哪一条河流向北流经十一个国家以后才最终注入内海"
    index = evaluation_index([("rivers", question), ("河流", chinese)])
    planted = ENGLISH + " which of these RIVERS flows north -- through eleven countries before it reaches " + ENGLISH
    assert decontaminate(document(planted), index) == Drop("decontaminate", "rivers")
    assert decontaminate(document(CHINESE + chinese[2:15], "zh"), index) == Drop("decontaminate", "河流")
    assert isinstance(decontaminate(document(CHINESE + chinese[2:14], "zh"), index), Document)  # twelve are too few
    assert isinstance(decontaminate(document(ENGLISH), index), Document)
    assert index.texts == (1, 1)


def test_short_evaluation_texts_match_whole_or_are_ignored() -> None:
    index = evaluation_index([("t", "a question of exactly eight words in total"), ("t", "only five words are here")])
    assert index.ignored == (1,)
    assert isinstance(decontaminate(document("So: a question of exactly eight words in total!"), index), Drop)
    assert isinstance(decontaminate(document("only five words are here"), index), Document)


def test_no_evaluation_texts() -> None:
    assert isinstance(decontaminate(document(ENGLISH), evaluation_index([])), Document)


@given(st.lists(st.sampled_from(["甲", "b", "cc", "丁"]), max_size=30), st.integers(1, 14))
def test_gram_hashes_agree_exactly_where_grams_do(words: list[str], n: int) -> None:
    text = " ".join(words)
    found = terms(text)
    hashes = gram_hashes(text, n)
    grams = [tuple(found[i : i + n]) for i in range(len(found) - n + 1)]
    assert len(hashes) == len(grams)
    assert len(set(hashes.tolist())) == len(set(grams))
    for gram, value in zip(grams, hashes, strict=True):
        assert gram_hashes(" ".join(gram), n)[0] == value


def test_hashes_are_the_same_in_another_process() -> None:
    code = "from athanor.corpus.terms import gram_hashes; print(gram_hashes('one two 三 four', 3).tolist())"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert np.array_equal(np.array(json.loads(other), dtype=np.uint64), gram_hashes("one two 三 four", 3))
