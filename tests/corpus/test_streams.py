"""Streamed corpora: made once, read from anywhere, and never more on this machine than is allowed."""

from __future__ import annotations

import contextlib
import json
import shutil
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from athanor.base import transfers
from athanor.base.errors import DataError
from athanor.base.randomness import generator
from athanor.base.storage import Storage
from athanor.corpus.build import build_corpus, iterate_documents
from athanor.corpus.shards import Shards
from athanor.corpus.stream_cache import TOGETHER, TextStream
from athanor.corpus.streams import StreamIndex, read_index, write_stream
from athanor.tokenizer import Tokenizer, train_tokenizer
from athanor.training.streaming import StreamedBatches

_WORDS = ["stone", "river", "house", "green", "walks", "bread", "water", "road", "tall", "small", "night"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Tokenizer]:
    """A corpus, what is streamed of it, and the tokenizer."""
    folder = tmp_path_factory.mktemp("made")
    random = generator(0, "tests", "streams")
    (folder / "texts").mkdir()
    for number in range(150):
        words = [_WORDS[int(i)] for i in random.integers(len(_WORDS), size=int(random.integers(30, 120)))]
        (folder / "texts" / f"{number:03d}.txt").write_text(f"{number} {' '.join(words)}.", encoding="utf-8")
    build_corpus([folder / "texts"], (), folder / "corpus", held_out_share=0.1)
    tokenizer = train_tokenizer((d.text for d in iterate_documents(folder / "corpus", "train")), 512)
    write_stream(folder / "corpus", tokenizer, folder / "stream", shard_bytes=6000, seed=3)
    return folder / "corpus", folder / "stream", tokenizer


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATHANOR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(transfers, "_PAUSE", 0.001)


class Flaky(SimpleHTTPRequestHandler):
    """Serves ranges, and breaks off after `bytes_at_a_time`; `refused` first answers are 503."""

    bytes_at_a_time = 1 << 30
    refused = 0
    asked: list[str]

    def do_GET(self) -> None:
        kind = type(self)
        kind.asked.append(self.path)
        if kind.refused:
            kind.refused -= 1
            self.send_error(503)
            return
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        data = path.read_bytes()
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
        self.send_response(206)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        self.wfile.write(data[start : start + kind.bytes_at_a_time])

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def web(made: tuple[Path, Path, Tokenizer]) -> Iterator[tuple[str, type[Flaky]]]:
    """The corpus behind a web server: its address, and the server's behaviour."""

    class Handler(Flaky):
        asked: list[str] = []  # noqa: RUF012

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(made[1])))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", Handler
    server.shutdown()
    server.server_close()


@pytest.fixture
def memory(made: tuple[Path, Path, Tokenizer]) -> Iterator[str]:
    """The corpus in a store of fsspec's."""
    import fsspec

    store = fsspec.filesystem("memory")
    store.put(str(made[1]), "/bucket/stream", recursive=True)
    yield "memory://bucket/stream"
    store.rm("/bucket", recursive=True)


def batches(text: TextStream, **more: Any) -> StreamedBatches:
    return StreamedBatches(text, 4, 64, 7, pad_id=text.index.end_of_text_id, **more)


def test_every_document_is_in_one_shard(made: tuple[Path, Path, Tokenizer]) -> None:
    corpus, stream, tokenizer = made
    index = read_index(Storage(str(stream)))
    found = []
    for shard in sorted((stream / "train").iterdir()):
        opened = Shards.open(shard)
        found += [tokenizer.decode(opened.document(i)[:-1].tolist()) for i in range(len(opened))]
    assert sorted(found) == sorted(document.text for document in iterate_documents(corpus, "train"))
    assert len(index.shards) > 2 * TOGETHER
    assert index.n_documents == len(found)
    assert index.n_tokens == sum(Shards.open(shard).n_tokens for shard in (stream / "train").iterdir())


def test_an_epoch_gives_each_token_once_and_another_order_each_time(made: tuple[Path, Path, Tokenizer]) -> None:
    text = TextStream(str(made[1]))
    source = batches(text)
    passes = -(-len(text.index.shards) // TOGETHER)
    epochs: list[list[int]] = [[], [], []]
    while source.position.epoch < 2 * passes:
        (row,) = source.next_rows(1)
        epochs[source.position.epoch // passes] += [int(t) for m in row for t in source.pieces.pair(m)[1]]
    first, second, _ = epochs
    assert len(first) == len(second) == text.n_tokens
    assert sorted(first) == sorted(second)
    assert first != second


def test_training_goes_on_from_any_position(made: tuple[Path, Path, Tokenizer]) -> None:
    text = TextStream(str(made[1]))
    whole = batches(text)
    seen = []
    for _ in range(40):
        seen.append((whole.get_position(), whole.next()))
    assert seen[-1][0]["epoch"] > 1
    for position, batch in (seen[3], seen[17], seen[39]):
        other = batches(TextStream(str(made[1])))
        other.set_position(json.loads(json.dumps(position)))
        again = other.next()
        assert (again.tokens == batch.tokens).all()
        assert (again.targets == batch.targets).all()


def bytes_in(cache: Path) -> int:
    """Bytes of the shards there; the prefetching thread may drop one while they are counted."""
    total = 0
    for path in cache.glob("*.npy"):
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


@pytest.mark.parametrize("where", ["web", "memory"])
def test_from_elsewhere_come_the_same_batches_within_the_cache(
    where: str, made: tuple[Path, Path, Tokenizer], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    found = request.getfixturevalue(where)
    address = found[0] if where == "web" else found
    sizes = sorted((shard.size for shard in read_index(Storage(str(made[1]))).shards), reverse=True)
    bound = sum(sizes[: 2 * TOGETHER])
    here, there = batches(TextStream(str(made[1]))), batches(TextStream(address, cache_bytes=bound))
    for _ in range(40):
        ours, theirs = there.next(), here.next()
        assert (ours.tokens == theirs.tokens).all()
        assert bytes_in(tmp_path / "cache" / "streams") <= bound
    assert sum(sizes) > bound
    with pytest.raises(DataError, match="too small"):
        TextStream(address, cache_bytes=bound - 1)


def test_a_broken_connection_is_tried_again_where_it_broke(web: tuple[str, type[Flaky]]) -> None:
    address, server = web
    text = TextStream(address)
    server.bytes_at_a_time, server.refused = 2000, 3
    tokens, offsets = text.open([0])[0]
    assert len(tokens) == text.index.shards[0].n_tokens
    assert len(offsets) == text.index.shards[0].n_documents + 1
    assert server.asked.count(f"/{text.index.shards[0].tokens.path}") > 1
    before = len(server.asked)
    TextStream(address, text.index).open([0])
    assert len(server.asked) == before  # it is here now


def test_a_lost_server_is_an_error_that_names_it(web: tuple[str, type[Flaky]]) -> None:
    address, server = web
    text = TextStream(address)
    server.refused = 1 << 30
    with pytest.raises(DataError, match="503"):
        batches(text).next()


@pytest.mark.parametrize("damage", ["truncated", "longer", "changed", "missing"])
@pytest.mark.parametrize("where", ["here", "web", "memory"])
def test_a_shard_that_is_not_the_recorded_one_is_refused(
    damage: str, where: str, made: tuple[Path, Path, Tokenizer], tmp_path: Path
) -> None:
    stream = tmp_path / "stream"
    shutil.copytree(made[1], stream)
    path = stream / "train" / "00000" / "tokens.npy"
    data = path.read_bytes()
    path.unlink()
    changed = {"truncated": data[:-10], "longer": data + b"0" * 9, "changed": data[:-1] + bytes([data[-1] ^ 1])}
    if damage != "missing":
        path.write_bytes(changed[damage])
    address, server = str(stream), None
    if where == "memory":
        import fsspec

        fsspec.filesystem("memory").put(str(stream), f"/{damage}/stream", recursive=True)
        address = f"memory://{damage}/stream"
    elif where == "web":
        handler = type("Handler", (Flaky,), {"asked": []})
        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(stream)))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
    with pytest.raises(DataError) as raised:
        TextStream(address).open([0])
    assert "00000/tokens.npy" in str(raised.value)
    assert not list((tmp_path / "cache").glob("streams/*.npy"))
    if server:
        server.shutdown()
        server.server_close()


def test_a_damaged_cached_shard_is_fetched_again(web: tuple[str, type[Flaky]], tmp_path: Path) -> None:
    first = [tokens.tolist() for tokens, _ in TextStream(web[0]).open([0, 1])]
    for path in (tmp_path / "cache" / "streams").glob("*.npy"):
        path.write_bytes(path.read_bytes()[:-4] + b"lies")
    assert [tokens.tolist() for tokens, _ in TextStream(web[0]).open([0, 1])] == first


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schema_version": 2}, "newer version"),
        ({"shards": []}, "not the index"),
        ({"vocab_size": -1}, "not the index"),
        ({"files": [{"path": "../../etc/passwd", "size": 1, "sha256": "0" * 64}]}, "not the index"),
        ({"files": [{"path": "/etc/passwd", "size": 1, "sha256": "0" * 64}]}, "not the index"),
        ({"files": [{"path": "a", "size": 1, "sha256": "../x"}]}, "not the index"),
    ],
)
def test_an_index_that_is_none(change: dict[str, Any], said: str, made: tuple[Path, Path, Tokenizer]) -> None:
    value = read_index(Storage(str(made[1]))).to_json()
    with pytest.raises(DataError, match=said):
        StreamIndex.of_json({**value, **change}, "there")


def test_addresses_that_nothing_reads(tmp_path: Path) -> None:
    needs = [] if find_spec("s3fs") else [("s3://bucket/x", "s3fs")]
    for address, said in (("nonsense://x", "nonsense"), *needs, (str(tmp_path / "none"), "none")):
        with pytest.raises(DataError, match=said):
            read_index(Storage(address))


def test_the_same_corpus_makes_the_same_bytes(made: tuple[Path, Path, Tokenizer], tmp_path: Path) -> None:
    corpus, stream, tokenizer = made
    write_stream(corpus, tokenizer, tmp_path / "again", shard_bytes=6000, seed=3)
    assert (tmp_path / "again" / "stream.json").read_bytes() == (stream / "stream.json").read_bytes()
    with pytest.raises(DataError, match="no streamed corpus"):
        write_stream(corpus, tokenizer, corpus)
    with pytest.raises(DataError, match="no finished corpus"):
        write_stream(tmp_path, tokenizer, tmp_path / "other")


def test_block_sizes_do_not_lose_text(made: tuple[Path, Path, Tokenizer]) -> None:
    text = TextStream(str(made[1]))
    source = batches(text, block_tokens=500)
    seen = np.zeros(text.index.vocab_size, dtype=int)
    while source.position.epoch == 0:
        (row,) = source.next_rows(1)
        if source.position.epoch == 0:
            seen += np.bincount(
                np.concatenate([source.pieces.pair(m)[1] for m in row]), minlength=text.index.vocab_size
            )
    numbers = source.pieces._shards(0)
    assert seen.sum() == sum(text.index.shards[n].n_tokens for n in numbers)
