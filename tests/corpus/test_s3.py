"""Streamed corpora in an S3 store: moto's server plays it, s3fs reads it as it would read Amazon's.

Both are no part of the test environment (moto alone brings forty packages): `pip install "moto[server]" s3fs`.
"""

from __future__ import annotations

import os
import socket
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from athanor.base import transfers
from athanor.base.errors import DataError
from athanor.base.storage import Storage
from athanor.corpus.stream_cache import TextStream
from athanor.tokenizer import Tokenizer
from athanor.training.streaming import StreamedBatches
from tests.corpus.test_streams import _own_cache, batches, made  # noqa: F401, fixtures

s3fs = pytest.importorskip("s3fs", reason="s3:// is read by s3fs, which is not installed")
moto = pytest.importorskip("moto.server", reason="moto, which plays the store, is not installed")

Made = tuple[Path, Path, Tokenizer]


@pytest.fixture
def store(made: Made, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:  # noqa: F811
    """The corpus in a bucket; the endpoint of the store."""
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in {
        "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull, "AWS_EC2_METADATA_DISABLED": "true",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    use(f"http://{host}:{port}", monkeypatch)
    told(f"http://{host}:{port}", "reset")  # all of moto's servers in a process have one memory
    system = s3fs.S3FileSystem()
    system.mkdir("bucket")
    system.put(str(made[1]), "bucket/stream", recursive=True)
    yield f"http://{host}:{port}"
    server.stop()
    s3fs.S3FileSystem.clear_instance_cache()


def use(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads from there, and knows nothing of what was read before."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
    s3fs.S3FileSystem.clear_instance_cache()


class Breaking:
    """Stands between a client and the store, and cuts each of the first `breaks` long answers after `after` bytes."""

    def __init__(self, endpoint: str, breaks: int, after: int) -> None:
        host, port = endpoint.removeprefix("http://").split(":")
        self.behind, self.breaks, self.after = (host, int(port)), breaks, after
        self.listening = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._serve, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.listening.getsockname()[1]}"

    def _serve(self) -> None:
        while True:
            client, _ = self.listening.accept()
            try:
                store = socket.create_connection(self.behind)
            except OSError:  # the test is over
                return
            threading.Thread(target=self._pass, args=(client, store, False), daemon=True).start()
            threading.Thread(target=self._pass, args=(store, client, True), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket, answers: bool) -> None:
        passed = 0
        with suppress(OSError):
            while block := source.recv(1024):
                target.sendall(block)
                passed += len(block)
                if answers and self.breaks and passed > self.after:
                    self.breaks -= 1
                    break
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def same_batches(ours: StreamedBatches, theirs: StreamedBatches, number: int) -> None:
    for _ in range(number):
        one, other = ours.next(), theirs.next()
        np.testing.assert_array_equal(one.tokens, other.tokens)
        np.testing.assert_array_equal(one.targets, other.targets)


def test_a_bucket_gives_the_same_batches_and_goes_on_in_the_middle(store: str, made: Made, tmp_path: Path) -> None:  # noqa: F811
    here, there = batches(TextStream(str(made[1]))), batches(TextStream("s3://bucket/stream/"))
    same_batches(there, here, 25)
    position = there.get_position()
    for path in (tmp_path / "cache" / "streams").glob("*.npy"):  # another machine
        path.unlink()
    again = batches(TextStream("s3://bucket/stream"))
    again.set_position(position)
    same_batches(again, here, 15)


def test_a_connection_that_drops_is_tried_again(store: str, made: Made, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    between = Breaking(store, breaks=6, after=2000)
    use(between.address, monkeypatch)
    same_batches(batches(TextStream("s3://bucket/stream")), batches(TextStream(str(made[1]))), 20)
    assert between.breaks == 0


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize("address", ["s3://no-bucket/stream", "s3://bucket/elsewhere", "s3://bucket"])
def test_what_is_not_in_the_store(address: str) -> None:
    with pytest.raises(DataError, match=f"^{address}/stream.json does not exist"):
        TextStream(address)


@pytest.mark.usefixtures("store")
def test_a_shard_that_is_gone_is_named() -> None:
    text = TextStream("s3://bucket/stream")
    s3fs.S3FileSystem().rm(f"bucket/stream/{text.index.shards[0].tokens.path}")
    with pytest.raises(DataError, match=r"s3://bucket/stream/train/\d+/tokens.npy does not exist"):
        text.open([0])


@pytest.mark.usefixtures("store")
def test_names_that_no_bucket_has() -> None:
    for address, said in (("s3://B_!/stream", "Invalid bucket name"), ("s3://", "names no place")):
        with pytest.raises(DataError, match=said):
            TextStream(address)


@pytest.mark.usefixtures("store")
def test_without_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(DataError, match=r"may not be read \(.*credentials") as refused:
        TextStream("s3://bucket/stream")
    assert "AWS_ACCESS_KEY_ID" in refused.value.hint
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(DataError, match=r"may not be read.*nobody"):
        TextStream("s3://bucket/stream")


def test_with_wrong_credentials(store: str) -> None:
    text = TextStream("s3://bucket/stream")
    mind_credentials(store, after=0)
    try:
        for read in (lambda: TextStream("s3://bucket/stream"), lambda: text.open([0])):
            s3fs.S3FileSystem.clear_instance_cache()
            with pytest.raises(DataError, match="may not be read") as refused:
                read()
            assert "AWS_ACCESS_KEY_ID" in refused.value.hint
    finally:
        mind_credentials(store, after=10**9)


def mind_credentials(store: str, after: int) -> None:
    """Makes moto ask whether a key exists, after so many requests."""
    told(store, "reset-auth", str(after))


def told(store: str, what: str, body: str = "") -> None:
    """What moto itself is asked to do."""
    headers = {"Content-Type": "text/plain"}
    urllib.request.urlopen(urllib.request.Request(f"{store}/moto-api/{what}", body.encode(), headers)).close()


def test_a_store_that_is_gone(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfers, "_TRIES", 1)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    text = TextStream("s3://bucket/stream")
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        address = f"http://127.0.0.1:{nobody.getsockname()[1]}"
    use(address, monkeypatch)
    with pytest.raises(DataError, match="s3://bucket cannot be reached"):
        text.open([0])
    with pytest.raises(DataError, match="s3://bucket cannot be reached"):
        Storage("s3://bucket/stream").read_json("stream.json")
