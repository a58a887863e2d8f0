"""Streamed corpora in a data set of the Hugging Face hub: the hub's own client, and a server that gives its answers."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from tests.corpus.test_streams import made  # noqa: F401, a fixture

pytest.importorskip("huggingface_hub", reason="hf:// is read by huggingface_hub, which is not installed")

_READ = """
import json, sys
from athanor.base import transfers
from athanor.base.errors import AthanorError
from athanor.corpus.stream_cache import TextStream
from athanor.training.streaming import StreamedBatches
transfers._PAUSE = 0.001
try:
    text = TextStream(sys.argv[1])
    source = StreamedBatches(text, 4, 64, 7, pad_id=text.index.end_of_text_id)
    print(json.dumps([source.next().tokens.tolist() for _ in range(int(sys.argv[2]))]))
except AthanorError as error:
    print(f"{error.message} {error.hint}")
"""


class Hub(BaseHTTPRequestHandler):
    """What the client asks of the hub for a data set at org/name: whether it is there, what a file is, its bytes."""

    protocol_version = "HTTP/1.1"
    folder: Path
    token: str | None = None
    breaks = 0

    def do_GET(self) -> None:
        if not self._may("/datasets/org/name"):
            return
        url = urlsplit(self.path)
        asked = re.fullmatch(r"(?:/api)?/datasets/org/name(?:/revision/[^/]+|/(tree|resolve)/[^/]+/(.*))?", url.path)
        if asked is None:
            self._answer({"error": "No such question"}, 404)
            return
        what, path = asked.groups()
        if what is None:
            self._answer({"id": "org/name", "private": False, "sha": "0" * 40, "siblings": [], "tags": []})
        elif what == "tree":
            self._list(unquote(path))
        else:
            self._send(path)

    def _list(self, path: str) -> None:
        folder = self.folder / path.removeprefix("stream").lstrip("/")
        if not path.startswith("stream") or not folder.is_dir():
            self._answer({"error": "Entry not found"}, 404, "EntryNotFound")
            return
        kinds = {True: "directory", False: "file"}
        self._answer([
            {"type": kinds[one.is_dir()], "path": f"{path}/{one.name}", "size": one.stat().st_size, "oid": "0" * 40}
            for one in sorted(folder.iterdir())
        ])  # fmt: skip

    def _send(self, path: str) -> None:
        data = (self.folder / path.removeprefix("stream/")).read_bytes()
        start, _, end = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
        data = data[int(start) : int(end) + 1 if end else None]
        self.send_response(206)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if type(self).breaks and len(data) > 100:
            type(self).breaks -= 1
            self.wfile.write(data[: len(data) // 2])
            self.connection.close()
            return
        self.wfile.write(data)

    def _may(self, repository: str) -> bool:
        known = self.path.removeprefix("/api").startswith(repository)
        allowed = self.token is None or self.headers.get("Authorization") == f"Bearer {self.token}"
        if not known or not allowed:
            self._answer({"error": "Repository not found"}, 401, "RepoNotFound")
        return known and allowed

    def _answer(self, value: Any, status: int = 200, code: str = "") -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if code:
            self.send_header("X-Error-Code", code)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub(made: tuple[Path, Path, Any]) -> Iterator[tuple[str, type[Hub]]]:  # noqa: F811
    handler = type("Handler", (Hub,), {"folder": made[1]})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", handler
    server.shutdown()
    server.server_close()


def read(address: str, endpoint: str, cache: Path, batches: int = 1, token: str | None = None) -> str:
    """In a process of its own: the client reads its settings when it is imported."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(cache / "hf"), "ATHANOR_CACHE": str(cache)}
    environment |= {"HF_TOKEN": token} if token else {}
    command = [sys.executable, "-c", _READ, address, str(batches)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


@pytest.mark.slow  # the client waits between its attempts
def test_a_data_set_of_the_hub_gives_the_same_batches(hub: tuple[str, type[Hub]], tmp_path: Path) -> None:
    endpoint, server = hub
    here = read(str(server.folder), endpoint, tmp_path / "here", 12)
    server.breaks, server.token = 3, "hf_secret"
    there = read("hf://datasets/org/name/stream", endpoint, tmp_path / "there", 12, token="hf_secret")
    assert json.loads(there) == json.loads(here)
    assert server.breaks == 0


def test_what_the_hub_does_not_have(hub: tuple[str, type[Hub]], tmp_path: Path) -> None:
    for place in ("name/elsewhere", "other/stream"):
        found = read(f"hf://datasets/org/{place}", hub[0], tmp_path)
        assert found.startswith(f"hf://datasets/org/{place}/stream.json does not exist.")
        assert "HF_TOKEN" in found  # what is private is hidden from those who are not logged in
