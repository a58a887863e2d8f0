"""Models of the Hugging Face hub, from a small hub of our own that can break off, refuse and lie."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import torch

from athanor.base import transfers
from athanor.base.errors import AthanorError
from athanor.engine.locate import find_model
from athanor.models import hub
from athanor.models.folder import load_model

COMMIT = "c" * 40


@dataclass
class Hub:
    """files: what `org/tiny` holds. cuts: bytes after which the next answers end. requests: (path, range, token)."""

    files: dict[str, bytes] = field(default_factory=dict)
    cuts: list[int] = field(default_factory=list)
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    ranges: bool = True
    status: int = 200
    lies: bool = False
    elsewhere: str = ""

    def description(self) -> dict[str, Any]:
        siblings = []
        for name, data in self.files.items():
            entry: dict[str, Any] = {"rfilename": name, "size": len(data)}
            entry["blobId"] = hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()
            if not name.endswith(".json"):
                digest = "0" * 64 if self.lies else hashlib.sha256(data).hexdigest()
                entry["lfs"] = {"sha256": digest, "size": len(data)}
            siblings.append(entry)
        return {"sha": COMMIT, "siblings": siblings}

    def asked(self, name: str) -> list[str]:
        return [wanted for path, wanted, _ in self.requests if path.endswith(f"/{name}")]


def serve(server_hub: Hub) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            wanted = self.headers.get("Range", "")
            server_hub.requests.append((path, wanted, self.headers.get("Authorization", "")))
            prefix = f"/org/tiny/resolve/{COMMIT}/"
            if server_hub.status != 200:
                self.send_error(server_hub.status)
            elif path in ("/api/models/org/tiny/revision/main", "/api/models/org/tiny/revision/v1"):
                self.answer(json.dumps(server_hub.description()).encode(), "")
            elif path.startswith(prefix) and path.removeprefix(prefix) in server_hub.files:
                if server_hub.elsewhere:
                    self.send_response(302)
                    self.send_header("Location", server_hub.elsewhere + self.path)
                    self.end_headers()
                else:
                    self.answer(server_hub.files[path.removeprefix(prefix)], wanted if server_hub.ranges else "")
            else:
                self.send_error(404)

        def answer(self, data: bytes, wanted: str) -> None:
            start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
            self.send_response(206 if wanted else 200)
            if wanted:
                self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
            self.send_header("Content-Length", str(len(data) - start))
            self.end_headers()
            data = data[start:]
            self.wfile.write(data[: server_hub.cuts.pop(0)] if server_hub.cuts and len(data) > 2000 else data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


@pytest.fixture
def our_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    made = Hub()
    server = serve(made)
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_TOKEN_PATH", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(transfers, "_PAUSE", 0.001)
    monkeypatch.chdir(tmp_path)
    yield made
    server.shutdown()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What transformers writes, in shards."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, max_position_embeddings=64,
    )  # fmt: skip
    made = tmp_path_factory.mktemp("hub") / "tiny"
    Qwen3ForCausalLM(config).save_pretrained(made, max_shard_size="8KB")
    assert (made / "model.safetensors.index.json").is_file()
    (made / "pytorch_model.bin").write_bytes(b"pickled")
    return made


@pytest.fixture
def filled(our_hub: Hub, folder: Path) -> Hub:
    our_hub.files = {path.name: path.read_bytes() for path in folder.iterdir()}
    return our_hub


def test_a_sharded_model_is_fetched_and_loads(filled: Hub, folder: Path, tmp_path: Path) -> None:
    place = find_model("hf://org/tiny")
    assert place == tmp_path / "hf" / "hub" / "models--org--tiny" / "snapshots" / COMMIT
    ours, theirs = load_model(place).state_dict(), load_model(folder).state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert not filled.asked("pytorch_model.bin")
    assert all(token == "Bearer secret" for _, _, token in filled.requests)
    asked = len(filled.requests)
    assert find_model("hf://org/tiny") == place
    assert len(filled.requests) == asked + 1  # only whether it is still the newest


def test_the_cache_is_the_one_that_everybody_uses(filled: Hub) -> None:
    from huggingface_hub import scan_cache_dir, try_to_load_from_cache

    place = find_model("hf://org/tiny@v1")
    (repository,) = scan_cache_dir(hub.hub_folder()).repos
    assert repository.repo_id == "org/tiny"
    assert repository.refs.keys() == {"v1"}
    found = try_to_load_from_cache("org/tiny", "config.json", cache_dir=hub.hub_folder(), revision="v1")
    assert Path(str(found)) == place / "config.json"


def test_what_has_arrived_is_kept_and_the_rest_is_fetched(filled: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    filled.files = {"model.gguf": bytes(range(256)) * 400}
    monkeypatch.setattr(transfers, "_TRIES", 1)
    filled.cuts = [70_000, 0]
    with pytest.raises(AthanorError, match="ends before"):
        find_model("hf://org/tiny")
    (partial,) = (hub.hub_folder() / "models--org--tiny" / "blobs").iterdir()
    assert partial.stat().st_size == 70_000
    place = find_model("hf://org/tiny")
    assert place.read_bytes() == filled.files["model.gguf"]
    assert filled.asked("model.gguf") == ["bytes=0-", "bytes=70000-", "bytes=70000-"]


def test_a_broken_connection_is_taken_up_at_once(filled: Hub) -> None:
    filled.files = {"model.gguf": bytes(range(256)) * 400}
    filled.cuts = [30_000, 0, 0, 20_000]
    assert find_model("hf://org/tiny").read_bytes() == filled.files["model.gguf"]
    assert filled.asked("model.gguf")[-1] == "bytes=50000-"


def test_a_server_without_ranges_gives_the_whole_file_again(filled: Hub) -> None:
    filled.files, filled.ranges, filled.cuts = {"model.gguf": bytes(range(256)) * 400}, False, [30_000]
    assert find_model("hf://org/tiny").read_bytes() == filled.files["model.gguf"]


def test_another_file_than_announced_is_not_kept(filled: Hub) -> None:
    filled.lies = True
    with pytest.raises(AthanorError, match="not the announced file"):
        find_model("hf://org/tiny")
    assert not list(hub.hub_folder().rglob("*.incomplete"))
    with pytest.raises(AthanorError, match="There is no model"):
        find_model("org/tiny")


@pytest.mark.parametrize("status", [401, 403, 404, 503])
def test_a_refusal_has_a_sentence(filled: Hub, status: int) -> None:
    filled.status = status
    with pytest.raises(AthanorError, match=str(status)) as caught:
        find_model("hf://org/tiny")
    assert "HF_TOKEN" in caught.value.hint or status >= 404


def test_the_token_stays_with_its_host(filled: Hub) -> None:
    other = Hub(files=filled.files)
    server = serve(other)
    filled.elsewhere = f"http://127.0.0.1:{server.server_port}"
    load_model(find_model("hf://org/tiny"))
    server.shutdown()
    assert other.requests
    assert all(token == "" for _, _, token in other.requests)


def test_no_connection_has_a_sentence(filled: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(AthanorError, match=r"127\.0\.0\.1:9 cannot be reached") as caught:
        find_model("hf://org/tiny")
    assert "HTTPS_PROXY" in caught.value.hint


def test_a_cached_model_needs_no_hub(
    filled: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = find_model("hf://org/tiny")
    filled.requests.clear()
    assert find_model("org/tiny") == place
    assert find_model(f"hf://org/tiny@{COMMIT}") == place
    assert not filled.requests
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert find_model("hf://org/tiny") == place
    assert "copy in the cache" in capsys.readouterr().err
    (cached,) = hub.cached_models()
    assert (cached.name, cached.place, cached.kind) == ("org/tiny", place, "Qwen3ForCausalLM")
    next(place.glob("model-*")).unlink()
    assert hub.cached_models() == []
    with pytest.raises(AthanorError, match="HF_HUB_OFFLINE"):
        find_model("hf://org/tiny")


def test_a_folder_of_that_name_comes_first(filled: Hub, folder: Path, tmp_path: Path) -> None:
    find_model("hf://org/tiny")
    shutil.copytree(folder, tmp_path / "org" / "tiny")
    assert find_model("org/tiny") == Path("org/tiny")


def test_one_of_several_gguf_files_is_chosen(filled: Hub) -> None:
    filled.files = {"a.gguf": b"a" * 9, "sub/b.gguf": b"b" * 9, "../c.gguf": b"c", "readme.md": b""}
    with pytest.raises(AthanorError, match="2 GGUF files") as caught:
        find_model("hf://org/tiny")
    assert "hf://org/tiny/a.gguf" in caught.value.hint
    assert find_model("hf://org/tiny/sub/b.gguf").read_bytes() == b"b" * 9
    assert not filled.asked("a.gguf")
    with pytest.raises(AthanorError, match=r"no file none\.gguf"):
        find_model("hf://org/tiny/none.gguf")


def test_what_cannot_be_read_is_not_fetched(filled: Hub) -> None:
    settings = json.loads(filled.files["config.json"]) | {"architectures": ["StrangeModel"]}
    filled.files["config.json"] = json.dumps(settings).encode()
    with pytest.raises(AthanorError, match="StrangeModel"):
        find_model("hf://org/tiny")
    assert not filled.asked("model.safetensors.index.json")
    filled.files = {"pytorch_model.bin": b"pickled", "config.json": b"{}"}
    with pytest.raises(AthanorError, match="no model that is read") as caught:
        find_model("hf://org/tiny")
    assert "pickled" in caught.value.hint


@pytest.mark.parametrize("listed", [[["LlamaForCausalLM"]], [{}], {"a": 1}, "LlamaForCausalLM", [None]])
def test_a_strange_configuration_in_the_cache_is_passed_over(our_hub: Hub, listed: Any) -> None:
    snapshot = hub.HubName("org/tiny").folder / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text(json.dumps({"architectures": listed}))
    (snapshot / "model.safetensors").touch()
    assert hub.cached_models() == []
    our_hub.files = {path.name: path.read_bytes() for path in snapshot.iterdir()}
    with pytest.raises(AthanorError, match="names"):
        find_model("hf://org/tiny@v1")


@pytest.mark.parametrize(
    "answer", [b"<html>", b"[" * 200_000, b"{}", b'{"siblings": 5}', b'{"siblings": [[]], "sha": 1}']
)
def test_answers_that_describe_no_model(our_hub: Hub, monkeypatch: pytest.MonkeyPatch, answer: bytes) -> None:
    monkeypatch.setattr(json, "dumps", lambda _: answer.decode())
    with pytest.raises(AthanorError, match=r"not JSON|does not describe a model"):
        find_model("hf://org/tiny")


def test_a_name_in_another_alphabet_and_a_token_that_is_none(our_hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "tök☃")
    with pytest.raises(AthanorError, match="no model орг/имя"):
        find_model("hf://орг/имя")
    assert [token for _, _, token in our_hub.requests] == [""]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("hf://org/name", ("org/name", None, None)),
        ("org/na.me-1", ("org/na.me-1", None, None)),
        ("hf://org/name@v1.0", ("org/name", "v1.0", None)),
        ("hf://org/name@refs%2Fpr%2F1/sub/a.Q4.gguf", ("org/name", "refs/pr/1", "sub/a.Q4.gguf")),
        ("hf://org/name/../x.gguf", None),
        ("hf://org/name@..%2F..", None),
        ("hf://org/../name", None),
        ("hf://org/name@a%00b", None),
        ("/tmp/name", None),
    ],
)
def test_names(text: str, parts: tuple[str, str | None, str | None] | None) -> None:
    assert hub.parse(text) == (hub.HubName(*parts) if parts else None)
