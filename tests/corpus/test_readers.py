"""Readers of a user's files, whole and broken, and of the members of archives."""

from __future__ import annotations

import gzip
import json
import os
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from athanor.base.errors import DataError
from athanor.corpus.archives import member_names, read_member
from athanor.corpus.cutting import cut, unwrap
from athanor.corpus.document import Document
from athanor.corpus.file_readers import SUFFIXES, ReadReport, language_of
from athanor.corpus.package_readers import READERS, read_source
from athanor.corpus.packages import PACKAGES, SOURCES
from athanor.corpus.readers import read_sources, resolve

PROSE = "The old man mended his net on the quay, and the boy counted boats. "
HAN = "清晨的港口十分安静，只有海鸥已经醒来。"


def read(*entries: str | Path) -> tuple[list[Document], ReadReport]:
    report = ReadReport()
    return list(read_sources(list(entries), report)), report


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("utf-8", HAN),
        ("utf-8-sig", HAN),
        ("utf-16", HAN),
        ("gb18030", HAN),
        ("gb18030", f"{PROSE}{HAN}"),
        ("cp1252", "Le café était fermé; il préféra naïvement s’en aller à la gare, où déjà"),
        ("latin-1", "Über allen Gipfeln ist Ruh, in allen Wipfeln spürest du kaum einen Hauch"),
    ],
)
def test_encodings(tmp_path: Path, encoding: str, text: str) -> None:
    (tmp_path / "a.txt").write_bytes(text.encode(encoding))
    documents, report = read(tmp_path)
    assert [document.text for document in documents] == [text]
    assert not report.skipped


def test_every_format(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    folder = tmp_path / "mine"
    (folder / "sub").mkdir(parents=True)
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "x.txt").write_text("never read")
    (folder / "a.txt").write_text("plain text")
    (folder / "b.md").write_text("# Title\n\nmarked text")
    (folder / "c.jsonl").write_text('{"text":"first","id":"k1"}\n\n{"content":"second"}\n"third"\n')
    (folder / "d.jsonl.gz").write_bytes(gzip.compress(b'{"body":"zipped"}\n'))
    (folder / "e.json").write_text('[{"text":"listed"},{"text":"again","id":7}]')
    (folder / "f.json").write_text('{"k":{"text":"nested"}}')
    pyarrow.parquet.write_table(pyarrow.table({"content": ["row", None], "id": [1, 2]}), folder / "g.parquet")
    (folder / "sub" / "h.TXT").write_text("below")
    (folder / "picture.png").write_bytes(b"ignored")
    documents, report = read(folder)
    texts = {document.id: document.text for document in documents}
    assert texts == {
        "mine/a.txt#0000": "plain text",
        "mine/b.md#0000": "# Title\n\nmarked text",
        "mine/c.jsonl#1:k1": "first",
        "mine/c.jsonl#3": "second",
        "mine/c.jsonl#4": "third",
        "mine/d.jsonl.gz#1": "zipped",
        "mine/e.json#1": "listed",
        "mine/e.json#2:7": "again",
        "mine/f.json#1": "nested",
        "mine/g.parquet#0:1": "row",
        "mine/sub/h.TXT#0000": "below",
    }
    assert {document.source for document in documents} == {"mine"}
    assert sum(report.skipped.values()) == 1  # the empty row


def test_long_text_is_streamed_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("athanor.corpus.file_readers._BLOCK", 10_000)
    text = "\n\n".join(f"{i} {PROSE * 5}" for i in range(200))
    for content in (text, text.replace("\n\n", "\n"), text.replace("\n\n", " "), text.replace("\n", "\r\n")):
        (tmp_path / "long.txt").write_bytes(content.encode())
        documents, report = read(tmp_path)
        assert "".join("".join(document.text for document in documents).split()) == "".join(text.split())
        assert [document.id for document in documents] == [
            f"{tmp_path.name}/long.txt#{i:04d}" for i in range(len(documents))
        ]
        assert max(len(document.text) for document in documents) <= 8_000
        assert not report.skipped


def test_broken_files_are_skipped_and_named(tmp_path: Path) -> None:
    (tmp_path / "good.txt").write_text(PROSE)
    (tmp_path / "empty.txt").write_bytes(b"")
    (tmp_path / "blank.txt").write_bytes(b" \n\n ")
    (tmp_path / "binary.txt").write_bytes(bytes(range(256)) * 4)
    (tmp_path / "lines.jsonl").write_bytes(b'{"text":"kept"}\n{"text":\n\xff\xfe\n{"other":1}\n[1]\n' + b"[" * 100_000)
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b'{"text":"zipped"}\n' * 1000)[:-20])
    (tmp_path / "fake.jsonl.gz").write_bytes(b"not gzip")
    (tmp_path / "broken.json").write_bytes(b'{"text":')
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 nothing PAR1")
    (tmp_path / "dangling.txt").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe.txt")
    documents, report = read(tmp_path)
    texts = [document.text for document in documents]
    assert PROSE.strip() in texts
    assert "kept" in texts
    named = {Path(place.split(":")[0]).name for place, _ in report.places}
    wanted = {"empty.txt", "blank.txt", "binary.txt", "lines.jsonl", "cut.jsonl.gz", "fake.jsonl.gz"}
    assert named == wanted | {"broken.json", "broken.parquet"}
    assert report.skipped["line is not JSON"] == 3


def test_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text(PROSE)
    monkeypatch.setattr("athanor.corpus.file_readers.detect_encoding", lambda path: (path / "no").read_text())
    documents, report = read(tmp_path)
    assert not documents
    assert list(report.skipped) == ["unreadable file (Not a directory)"]


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(suffix=st.sampled_from(SUFFIXES), content=st.binary(max_size=400), packed=st.booleans())
def test_no_bytes_crash_a_reader(tmp_path: Path, suffix: str, content: bytes, packed: bool) -> None:
    path = tmp_path / f"file{suffix}"
    path.write_bytes(gzip.compress(content) if packed else content)
    for document in read(path)[0]:
        document.text.encode("utf-8")
        assert document.text.strip()


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.recursive(st.none() | st.text() | st.integers(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)))
def test_no_json_crashes_a_reader(tmp_path: Path, value: object) -> None:
    for name in ("v.json", "v.jsonl"):
        (tmp_path / name).write_text(json.dumps(value))
        for document in read(tmp_path / name)[0]:
            document.text.encode("utf-8")


def test_what_cannot_be_a_source(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        resolve([tmp_path / "nowhere"])
    with pytest.raises(DataError, match="no text that can be read"):
        resolve([tmp_path])
    (tmp_path / "a.pdf").write_bytes(b"%PDF")
    with pytest.raises(DataError, match="no text that can be read"):
        resolve([tmp_path / "a.pdf"])
    with pytest.raises(DataError, match="No source"):
        resolve([])


def test_names_of_sources_stay_apart(tmp_path: Path) -> None:
    for parent in ("x", "y"):
        (tmp_path / parent / "recipes").mkdir(parents=True)
        (tmp_path / parent / "recipes" / "a.txt").write_text(PROSE)
    found = resolve(["recipes", tmp_path / "x" / "recipes", tmp_path / "y" / "recipes", tmp_path / "x" / "recipes"])
    assert [source.name for source in found] == ["recipes", "recipes-2", "recipes-3"]
    assert [source.name for source in resolve(["default", "books"])] == [source.name for source in SOURCES]


def test_missing_pyarrow_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(DataError, match="pip install") as caught:
        read(tmp_path)
    assert "athanor-lm[corpus]" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "language"),
    [
        (PROSE, "en"),
        (HAN, "zh"),
        (HAN + " GPU", "zh"),
        ("これは日本語の文章です。", "ja"),
        ("안녕하세요 여러분", "ko"),
        ("Über allen Gipfeln", "und"),
        ("123 !?", "und"),
    ],
)
def test_language(text: str, language: str) -> None:
    assert language_of(text) == language


def test_cut_divides_evenly_and_loses_nothing() -> None:
    chapters = [f"CHAPTER {i}\n\n" + "\n\n".join([PROSE * 8] * 12) for i in range(3)]
    text = "\r\n".join("\n\n".join(chapters).split("\n"))
    documents = cut(text)
    assert len(documents) >= 3
    assert all(1_500 < len(document) <= 8_000 for document in documents)
    assert sum(document.startswith("CHAPTER") for document in documents) == 3
    assert "".join("".join(documents).split()) == "".join(text.split())
    assert cut("  \n ") == []


@given(st.text(alphabet="ab。.\n 中I", max_size=200), st.integers(1, 200))
def test_cut_bounds(text: str, repeat: int) -> None:
    documents = cut(text * repeat)
    assert "".join("".join(documents).split()) == "".join((text * repeat).split())
    assert all(len(document.encode()) <= 16_000 for document in documents)


def test_unwrap_joins_prose_and_keeps_verse() -> None:
    prose = "It is a truth universally acknowledged, that a single man in possession\r\nof a good fortune--\r\nmust be"
    assert unwrap(prose) != prose
    verse = "Tyger Tyger, burning bright,\nIn the forests of the night;"
    assert unwrap(verse) == verse
    assert unwrap("a" * 60 + "\n" + "b" * 70 + "\nc\n\nd") == "a" * 60 + " " + "b" * 70 + " c\n\nd"


def test_archive_bounds(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("data/big.txt", b"0" * 2_000_000)
        file.writestr("data/small.txt", b"text")
    assert read_member(path, "data/small.txt") == b"text"
    assert member_names(path, "data/", "l.txt") == ["data/small.txt"]
    with pytest.raises(DataError, match="at most"):
        read_member(path, "data/big.txt", limit=1_000_000)
    with pytest.raises(DataError, match="no member"):
        read_member(path, "data/none.txt")
    content = path.read_bytes()
    lying = content.replace((2_000_000).to_bytes(4, "little"), (10).to_bytes(4, "little"))
    path.write_bytes(lying)
    with pytest.raises(DataError):
        read_member(path, "data/big.txt", limit=1_000_000)
    path.write_bytes(content[:-30])
    with pytest.raises(DataError):
        read_member(path, "data/small.txt")
    with pytest.raises(DataError):
        member_names(path)


def test_readers_of_packages() -> None:
    by_name = {source.name: source for source in SOURCES}
    summary = json.dumps(
        {"Silo": {"title": "Silo", "extract": "A silo stores grain.", "description": "Store"}}
    ).encode()
    (silo,) = read_source(by_name["wikipedia-summaries"], "m", summary)
    assert silo.text == "Silo\n\nA silo stores grain."
    assert (silo.licence, silo.language, silo.meta["title"]) == ("CC-BY-SA-4.0", "en", "Silo")
    recipe = {
        "title": "Dip",
        "ingredients": ['1 cup () milk<ref name="x" />'],
        "steps": ["Heat to 80 &deg;C.", "Stir."],
    }
    (dip,) = read_source(by_name["recipes"], "m", json.dumps({"Dip": recipe}).encode())
    assert dip.text == "Dip\n\nIngredients:\n- 1 cup milk\n\nSteps:\n1. Heat to 80 °C.\n2. Stir."
    lines = b'{"passage":"Silo -- ``Grain\'\' store."}\n{"passage":"Silo -- ``Grain\'\' store.","question":"q"}\n'
    (passage,) = read_source(by_name["boolq-passages"], "m", lines)
    assert passage.text == 'Silo\n\n"Grain" store.'
    table = "word,pinyin,explanation,derivation,example\n" + (
        "大手大脚,dà shǒu dà jiǎo,指人手大，脚大◇多用来形容花钱不节省。同大手大足”。,"
        "清·曹雪芹《红楼梦》第五十一回成年家大手大脚的。”,一样的～。★老舍《二马》\n"
        "槌仁提义,chuí rén tí yì,指抛弃仁义。,无,无\n"
    )
    idiom, bare = read_source(by_name["idioms"], "m", table.encode())
    assert idiom.text == (
        "成语“大手大脚”（dà shǒu dà jiǎo）的意思是：指人手大，脚大。后多用来形容花钱不节省。同“大手大足”。"
        "出处：清·曹雪芹《红楼梦》第五十一回：“成年家大手大脚的。”例句：一样的大手大脚。（老舍《二马》）"
    )
    assert bare.text == "成语“槌仁提义”（chuí rén tí yì）的意思是：指抛弃仁义。"
    for source in SOURCES:
        assert source.reader in READERS
        assert source.package is PACKAGES[source.package.name]
        with pytest.raises(DataError):
            list(read_source(source, "m", b"\xff\xfe not this"))


def test_default_packages_are_pinned() -> None:
    assert len(PACKAGES) == 8
    for package in PACKAGES.values():
        assert len(bytes.fromhex(package.sha256)) == 32
        assert package.filename.startswith(f"{package.name.replace('-', '_')}-{package.version}-")
    paths = [path for source in SOURCES for path in source.paths]
    assert not [path for path in paths if "Tarantino" in path or "Kafka" in path]
