"""A run that reads a streamed corpus: the same life, and the same bytes when it was killed."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from functools import partial
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest

from athanor.base.errors import DataError, RecipeError
from athanor.corpus.stream_cache import TextStream
from athanor.pipeline.job import live
from athanor.pipeline.recipe_files import load_recipe
from athanor.pipeline.stage_batches import open_text
from tests.corpus.test_streams import Flaky
from tests.pipeline.conftest import TINY, athanor
from tests.pipeline.test_life import assert_same_contents, kill_during


@pytest.fixture
def streamed(tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A recipe that reads a corpus from a web server, which breaks off often."""
    monkeypatch.setenv("ATHANOR_CACHE", str(tmp_path / "cache"))
    texts = str(tiny_recipe.parent / "texts")
    athanor("corpus", "build", "--out", "corpus", "--source", texts, "--no-decontaminate", folder=tmp_path)
    arguments = ("--vocab-size", "512", "--shard-bytes", "3000", "--json")
    made = json.loads(athanor("corpus", "stream", "corpus", "--out", "stream", *arguments, folder=tmp_path))
    assert made["shards"] > 8
    handler = type("Handler", (Flaky,), {"asked": [], "bytes_at_a_time": 50_000})
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(tmp_path / "stream")))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    before, after = TINY.index("[corpus]"), TINY.index("[model]")
    path = tmp_path / "streamed.toml"
    path.write_text(f'{TINY[:before]}[corpus]\nstream = "{address}"\n{TINY[after:]}', encoding="utf-8")
    yield path
    server.shutdown()
    server.server_close()


@pytest.mark.slow
def test_a_streamed_life_killed_while_it_trains_ends_like_one_that_was_not(streamed: Path, tmp_path: Path) -> None:
    arguments = ("run", str(streamed), "--name", "life")
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    report = json.loads(athanor(*arguments, "--json", folder=tmp_path / "whole"))
    whole, killed = (tmp_path / name / "runs" / "life" for name in ("whole", "killed"))
    assert isinstance(open_text(whole / "shards"), TextStream)
    assert report["corpus"]["documents"]["kept"] == open_text(whole / "shards").index.n_documents
    assert report["baselines"]["kneser_ney_all_text"] is None
    assert report["baselines"]["same_tokens"] > 0
    assert not (whole / "shards" / "train").exists()
    kill_during("pretrain", arguments, tmp_path / "killed", killed, 0.15)
    athanor(*arguments, folder=tmp_path / "killed")
    assert_same_contents(whole, killed)


def test_a_stream_that_is_not_there_ends_a_run_before_it_begins(tmp_path: Path) -> None:
    for address, said in ((f"{tmp_path}/none", "does not exist"), ("gopher://x/y", "gopher://")):
        with pytest.raises(DataError, match=said):
            live(load_recipe("default", [f"corpus.stream={address}"]), tmp_path / "run")
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("corpus.limit_bytes=1000", "corpus.limit_bytes"),
        ("tokenizer.vocab_size=1024", "tokenizer.vocab_size"),
        ("pretrain.objective=masked", "reads no streamed corpus"),
        ("corpus.cache_bytes=0", "cache_bytes"),
    ],
)
def test_what_a_streamed_corpus_has_decided(change: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        load_recipe("default", ["corpus.stream=/somewhere", change])
