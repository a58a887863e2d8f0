"""Token shards: what was written is read back, and damage is noticed."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from athanor.base.errors import DataError
from athanor.corpus.document import Document
from athanor.corpus.shards import Shards, write_shards


def encode_many(texts: list[str]) -> list[list[int]]:
    return [list(text.encode()) for text in texts]


def documents(texts: list[str]) -> list[Document]:
    return [Document(text, f"s/{i}", f"s{i % 3}", "none", "zh" if i % 2 else "en") for i, text in enumerate(texts)]


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=20), st.booleans())
def test_round_trip(tmp_path: Path, texts: list[str], wide: bool) -> None:
    folder = tmp_path / "shards"
    given_ = documents(texts)
    index = write_shards(given_, encode_many, 256, folder, vocab_size=100_000 if wide else 257)
    shards = Shards.open(folder)
    assert shards.index == index
    assert shards.tokens.dtype == (np.uint32 if wide else np.uint16)
    assert len(shards) == len(texts)
    assert shards.n_tokens == len(shards.tokens) == sum(source.tokens for source in index.sources)
    for i, document in enumerate(given_):
        assert shards.document(i).tolist() == [*document.text.encode(), 256]
        assert shards.bytes_of(i) == len(document.text.encode())
        assert (shards.source_of(i).name, shards.source_of(i).language) == (document.source, document.language)
    assert index.n_bytes == sum(len(text.encode()) for text in texts)
    with pytest.raises(IndexError):
        shards.document(len(texts))


def test_many_batches_are_the_same_bytes_each_time(tmp_path: Path) -> None:
    given_ = documents([f"{i} " * 20_000 for i in range(60)])
    write_shards(iter(given_), encode_many, 256, tmp_path / "a")
    write_shards(iter(given_), encode_many, 256, tmp_path / "b")
    digests = [
        {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (tmp_path / name).iterdir()}
        for name in "ab"
    ]
    assert digests[0] == digests[1]
    assert set(digests[0]) == {"tokens.npy", "offsets.npy", "sources.npy", "bytes.npy", "index.json"}
    assert isinstance(Shards.open(tmp_path / "a").tokens, np.memmap)


@pytest.mark.parametrize("name", ["tokens.npy", "offsets.npy", "sources.npy", "bytes.npy", "index.json"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "changed", "empty"])
def test_damage_is_noticed(tmp_path: Path, name: str, damage: str) -> None:
    write_shards(documents(["one", "two", "three"]), encode_many, 256, tmp_path / "shards")
    path = tmp_path / "shards" / name
    content = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(content[:-3])
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        content[-5 if name == "index.json" else -1] ^= 0x55
        path.write_bytes(content)
    with pytest.raises(DataError, match="missing or damaged"):
        Shards.open(tmp_path / "shards")


def test_structure_is_checked_where_hashes_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shards(documents(["one", "two", "three"]), encode_many, 256, tmp_path / "shards")
    monkeypatch.setattr("athanor.corpus.shards._HASHED_AT_OPENING", -1)
    Shards.open(tmp_path / "shards")
    for name, wrong in (
        ("offsets", np.array([0, 4, 3, 14])),
        ("offsets", np.array([0, 4, 8, 99])),
        ("sources", np.array([0, 1, 9], dtype=np.uint16)),
        ("bytes", np.array([3, 3])),
        ("tokens", np.zeros((2, 7), dtype=np.uint16)),
    ):
        path = tmp_path / "shards" / f"{name}.npy"
        kept = path.read_bytes()
        np.save(path, wrong)
        with pytest.raises(DataError):
            Shards.open(tmp_path / "shards")
        path.write_bytes(kept)


def test_what_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no document"):
        write_shards([], encode_many, 256, tmp_path / "shards")
    with pytest.raises(DataError, match="outside of the vocabulary"):
        write_shards(documents(["one"]), encode_many, 256, tmp_path / "shards", vocab_size=200)
    with pytest.raises(DataError, match="gave 0 lists"):
        write_shards(documents(["one"]), lambda texts: [], 256, tmp_path / "shards")
    assert list(tmp_path.iterdir()) == []
