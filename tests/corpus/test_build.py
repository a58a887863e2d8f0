"""Building a corpus from a user's folder: what is kept, split, counted, and that it is the same each time."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path

import pytest

from athanor.base.errors import DataError
from athanor.base.files import read_json, read_jsonl
from athanor.corpus.build import build_corpus, iterate_documents
from athanor.corpus.document import Document
from athanor.corpus.heldout import HeldOut, held_out_split

WORDS = ["harbour", "gull", "net", "quay", "mast", "lamp", "river", "stone", "cloud", "winter", "bread", "song"]


def sentence(random_: random.Random, length: int = 60) -> str:
    return " ".join(random_.choice(WORDS) + str(random_.randrange(50)) for _ in range(length))


def make_texts(folder: Path, count: int = 200) -> list[str]:
    folder.mkdir()
    random_ = random.Random(1)
    texts = [sentence(random_) for _ in range(count)]
    (folder / "texts.jsonl").write_text(
        "".join(json.dumps({"text": text, "id": f"t{i}"}) + "\n" for i, text in enumerate(texts))
    )
    return texts


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_build_counts_splits_and_repeats_itself(tmp_path: Path) -> None:
    texts = make_texts(tmp_path / "mine")
    with open(tmp_path / "mine" / "texts.jsonl", "a") as file:
        file.write(json.dumps({"text": texts[3].upper()}) + "\n")  # a duplicate
        file.write(json.dumps({"text": "too short"}) + "\n")
        file.write("broken\n")
        file.write(json.dumps({"text": "spam ham " * 100}) + "\n")
    evaluation = [
        ("quiz", " ".join(texts[7].split()[10:30])),
        ("other", "nothing of this is anywhere in the corpus at all, not once ever"),
    ]
    report = build_corpus([tmp_path / "mine"], evaluation, tmp_path / "out", seed=5, held_out_share=0.1)
    assert {rule: count.documents for rule, count in report.dropped().items()} == {
        "decontaminate": 1,
        "exact_duplicates": 1,
        "minimum_length": 1,
        "repetition": 1,
    }
    assert report.evaluation["quiz"].dropped.documents == 1
    assert report.evaluation["other"].dropped.documents == 0
    assert report.skipped == {"line is not JSON": 1}
    training = list(iterate_documents(tmp_path / "out", "train"))
    held_out = list(iterate_documents(tmp_path / "out", "heldout"))
    assert 5 <= len(held_out) <= 40
    assert {d.text for d in training} | {d.text for d in held_out} == set(texts) - {texts[7]}
    assert not {d.text for d in training} & {d.text for d in held_out}
    dropped = read_jsonl(tmp_path / "out" / "dropped.jsonl")
    assert {entry["reason"] for entry in dropped} == set(report.dropped())
    assert next(entry["detail"] for entry in dropped if entry["reason"] == "decontaminate") == "quiz"
    assert read_json(tmp_path / "out" / "report.json")["totals"]["training"]["documents"] == len(training)
    build_corpus([tmp_path / "mine"], evaluation, tmp_path / "again", seed=5, held_out_share=0.1)
    assert digests(tmp_path / "out") == digests(tmp_path / "again")
    assert set(digests(tmp_path / "out")) == {
        "DATA_LICENSES.md",
        "documents/heldout.jsonl",
        "documents/train-00000.jsonl",
        "dropped.jsonl",
        "report.json",
    }
    other = build_corpus([tmp_path / "mine"], evaluation, tmp_path / "again", seed=6, held_out_share=0.1)
    assert other.dropped().keys() == report.dropped().keys()
    assert digests(tmp_path / "out") != digests(tmp_path / "again")


def test_near_duplicates_of_training_are_not_held_out(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    texts = make_texts(folder, 60)
    with open(folder / "texts.jsonl", "a") as file:
        for i, text in enumerate(texts):  # every text twice, but for its last words
            file.write(json.dumps({"text": f"{text} and{i} so{i} on{i}"}) + "\n")
    (folder / "unique.jsonl").write_text(
        "".join(json.dumps({"text": sentence(random.Random(1000 + i))}) + "\n" for i in range(60))
    )
    report = build_corpus([folder], [], tmp_path / "out", held_out_share=0.3)
    assert report.dropped()["held_out_near_duplicate"].documents > 10
    training = [" ".join(d.text.split()[:30]) for d in iterate_documents(tmp_path / "out", "train")]
    held_out = [" ".join(d.text.split()[:30]) for d in iterate_documents(tmp_path / "out", "heldout")]
    assert held_out
    assert not set(training) & set(held_out)


def test_licences_name_what_was_used_and_no_more(tmp_path: Path) -> None:
    make_texts(tmp_path / "mine", 30)
    (tmp_path / "scraps").mkdir()
    (tmp_path / "scraps" / "a.txt").write_text("short")
    build_corpus([tmp_path / "mine", tmp_path / "scraps"], [], tmp_path / "out")
    text = (tmp_path / "out" / "DATA_LICENSES.md").read_text()
    assert "## mine" in text
    assert "your own" in text
    assert "scraps" not in text


def test_weights_and_limit(tmp_path: Path) -> None:
    texts = make_texts(tmp_path / "mine")
    report = build_corpus([tmp_path / "mine"], [], tmp_path / "twice", weights={"mine": 2})
    kept = report.total("held_out").documents
    assert report.total("training").documents == 2 * (len(texts) - kept)
    report = build_corpus([tmp_path / "mine"], [], tmp_path / "half", weights={"mine": 0.5})
    assert 0.3 * len(texts) < report.total("training").documents < 0.7 * len(texts)
    size = sum(len(text) for text in texts)
    report = build_corpus([tmp_path / "mine"], [], tmp_path / "limited", limit_bytes=size // 4)
    assert 0.1 * size < report.total("read").bytes < 0.4 * size
    with pytest.raises(DataError, match="not a source"):
        build_corpus([tmp_path / "mine"], [], tmp_path / "no", weights={"yours": 2})


def test_too_little_text_is_said_and_leaves_no_corpus(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("Only one document is here, and that is too little to hold anything out.")
    with pytest.raises(DataError, match="Too little text"):
        build_corpus([tmp_path / "one.txt"], [], tmp_path / "out")
    assert digests(tmp_path / "out") == {}
    with pytest.raises(DataError, match="Build the corpus"):
        list(iterate_documents(tmp_path / "out", "train"))


def test_failed_rebuild_keeps_the_old_documents(tmp_path: Path) -> None:
    make_texts(tmp_path / "mine", 30)
    build_corpus([tmp_path / "mine"], [], tmp_path / "out")
    before = digests(tmp_path / "out")["documents/train-00000.jsonl"]
    with pytest.raises(DataError):
        build_corpus([tmp_path / "mine"], [], tmp_path / "out", minimum_terms=1000)
    assert digests(tmp_path / "out")["documents/train-00000.jsonl"] == before
    assert not list(tmp_path.glob("out/.*"))


def test_damaged_documents_are_an_error(tmp_path: Path) -> None:
    make_texts(tmp_path / "mine", 30)
    build_corpus([tmp_path / "mine"], [], tmp_path / "out")
    path = tmp_path / "out" / "documents" / "train-00000.jsonl"
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataError, match="damaged"):
        list(iterate_documents(tmp_path / "out", "train"))


def test_split_is_fixed_by_id_and_seed() -> None:
    documents = [Document(f"text {i}", f"s/{i}", "s", "none", "en") for i in range(3000)]
    training, held_out = held_out_split(documents, seed=1)
    assert 30 <= len(held_out) <= 100
    assert len(training) + len(held_out) == len(documents)
    ids = {document.id for document in held_out}
    assert ids == {document.id for document in held_out_split(documents[::-1], seed=1)[1]}
    assert {d.id for d in held_out_split(documents[:1500], seed=1)[1]} == {
        d.id for d in documents[:1500] if d.id in ids
    }
    assert ids != {document.id for document in held_out_split(documents, seed=2)[1]}
    assert len(held_out_split(documents[:2], seed=1)[1]) == 1
    assert held_out_split(documents[:1], seed=1)[1] == []


def test_held_out_bytes_are_bounded_by_source() -> None:
    chooser = HeldOut(seed=1, share=0.5, bytes_per_source=100)
    documents = [Document("0123456789", f"{s}/{i}", s, "none", "en") for i in range(200) for s in ("a", "b")]
    released = [document for given in documents for document in chooser.offer(given)]
    held_out, rest = chooser.finish()
    assert [d.source for d in held_out] == ["a"] * 10 + ["b"] * 10
    assert {d.id for d in released + rest + held_out} == {d.id for d in documents}
