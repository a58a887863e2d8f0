"""A pinned wheel from an index over HTTP: found as pip finds it, and fetched on from where the connection broke."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from athanor.base import downloads, transfers
from athanor.base.downloads import PinnedPackage, cached_path, fetch
from athanor.base.errors import DataError
from athanor.base.package_index import _html_links, _json_links, find_wheel
from tests.base.test_downloads import make_wheel


@dataclass
class Index:
    """cuts: bytes after which the next answers with a wheel end. requests: (path, range, login)."""

    wheels: dict[str, bytes] = field(default_factory=dict)
    kind: str = "json"
    login: str = ""
    cuts: list[int] = field(default_factory=list)
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    address: str = ""

    def ranges(self) -> list[str]:
        return [wanted for path, wanted, _ in self.requests if path.endswith(".whl")]


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    made = Index()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            wanted, login = self.headers.get("Range", ""), self.headers.get("Authorization", "")
            made.requests.append((self.path, wanted, login))
            name = self.path.rpartition("/")[2]
            if made.login and login != f"Basic {base64.b64encode(made.login.encode()).decode()}":
                self.send_error(401)
            elif self.path == "/simple/wheel-one/":
                links = [f"../../files/{name}#sha256=0" for name in made.wheels]
                if made.kind == "json":
                    self.answer(json.dumps({"files": [{"url": link} for link in links]}), "application/json")
                else:
                    self.answer("".join(f'<a href="{link}">wheel</a>' for link in links), "text/html")
            elif name in made.wheels:
                data = made.wheels[name]
                start = int(wanted.removeprefix("bytes=").removesuffix("-"))
                self.send_response(206)
                self.send_header("Content-Length", str(len(data) - start))
                self.end_headers()
                self.wfile.write(data[start:][: made.cuts.pop(0)] if made.cuts else data[start:])
            else:
                self.send_error(404)

        def answer(self, text: str, kind: str) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.end_headers()
            self.wfile.write(text.encode())

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    made.address = f"127.0.0.1:{server.server_port}/simple"
    for variable in ("PIP_FIND_LINKS", "PIP_NO_INDEX", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_INDEX_URL", f"http://{made.address}")
    monkeypatch.setenv("ATHANOR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(transfers, "_PAUSE", 0.001)
    yield made
    server.shutdown()


def put(index: Index, shelf: Path) -> PinnedPackage:
    package = make_wheel(shelf, "wheel_one", bytes(50_000))
    index.wheels[package.filename] = (shelf / package.filename).read_bytes()
    return package


@pytest.mark.parametrize("kind", ["json", "html"])
def test_a_broken_download_goes_on_where_it_broke(index: Index, tmp_path: Path, kind: str) -> None:
    index.kind = kind
    package = put(index, tmp_path)
    index.cuts = [1000, 30_000]
    heard: list[int] = []
    assert fetch(package, heard.append).read_bytes() == index.wheels[package.filename]
    assert index.ranges() == ["bytes=0-", "bytes=1000-", "bytes=31000-"]
    assert heard[-1] == package.size


def test_an_interrupted_command_goes_on_too(index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = put(index, tmp_path)
    index.cuts = [20_000, *[0] * 5]
    with pytest.raises(DataError, match="ends before") as caught:
        fetch(package)
    assert "continues" in caught.value.hint
    monkeypatch.setattr(downloads, "_pip_download", lambda *_: pytest.fail("pip starts from nothing"))
    assert fetch(package) == cached_path(package)
    assert index.ranges()[-1] == "bytes=20000-"
    assert [path.name for path in cached_path(package).parent.iterdir() if path.is_file()] == [package.filename]


def test_a_login_in_the_address_is_used(index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = put(index, tmp_path)
    index.login = "me:se cret"
    monkeypatch.setenv("PIP_INDEX_URL", f"http://me:se%20cret@{index.address}")
    assert fetch(package).is_file()


def test_what_only_pip_knows_is_left_to_pip(index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = put(index, tmp_path)
    assert find_wheel("Wheel_One", package.filename) is not None
    assert find_wheel("wheel-one", "other.whl") is None
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    assert find_wheel("wheel-one", package.filename) is None
    assert fetch(package).is_file()
    assert index.ranges() == []


def test_a_wheel_that_is_not_the_pinned_one_is_refused(index: Index, tmp_path: Path) -> None:
    package = put(index, tmp_path)
    index.wheels[package.filename] = bytes(package.size)
    with pytest.raises(DataError, match="not the announced file"):
        fetch(package)
    assert not [path for path in cached_path(package).parent.iterdir() if path.is_file()]


@given(st.text())
def test_pages_without_sense_give_links_or_nothing(text: str) -> None:
    assert isinstance(_html_links(text), list)


@given(
    st.recursive(
        st.none() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_json_without_sense_too(value: Any) -> None:
    assert isinstance(_json_links(json.dumps(value)), list)
    assert isinstance(_json_links(json.dumps({"files": value})), list)
