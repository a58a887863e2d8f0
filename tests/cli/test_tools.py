"""tokenizer, corpus, bench and doctor: each does its work and says it as JSON too."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Athanor = Callable[..., "subprocess.CompletedProcess[str]"]
WORDS = ["the", "furnace", "of", "and", "that", "burns", "with", "slowly", "is", "read", "aloud", "in"]


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """Sixty short documents that no rule drops."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for i in range(60):
        words = " ".join(f"{word}{i * 7 % 31}" for word in WORDS)
        (folder / f"{i:02d}.txt").write_text(f"Document number {i} says: {words}.\n")
    (folder / "broken.jsonl").write_text('{"text": "whole"}\nnot json\n')
    return folder


def test_tokenizer_train_and_inspect(athanor: Athanor, texts: Path, tmp_path: Path) -> None:
    done = athanor("tokenizer", "train", texts, "--vocab-size", "384", "--out", tmp_path / "tok", "--json")
    assert done.returncode == 0, done.stderr
    trained = json.loads(done.stdout)
    assert trained["vocab_size"] == 384
    assert sum(trained["skipped"].values()) == 1
    again = athanor("tokenizer", "train", texts, "--vocab-size", "384", "--out", tmp_path / "tok2")
    assert trained["fingerprint"][:12] in again.stdout
    text = "the 炉\x1b[31m"
    found = json.loads(athanor("tokenizer", "inspect", tmp_path / "tok", text, "--json").stdout)
    assert bytes.fromhex("".join(token["bytes"] for token in found["tokens"])).decode() == text
    shown = athanor("tokenizer", "inspect", tmp_path / "tok", "-", stdin=text).stdout
    assert "\x1b" not in shown
    assert f"{len(found['tokens'])} tokens, {len(text.encode())} bytes" in shown


def test_tokenizer_errors(athanor: Athanor, texts: Path, tmp_path: Path) -> None:
    done = athanor("tokenizer", "train", texts, "--vocab-size", "1000", "--out", tmp_path / "tok")
    assert done.returncode == 2
    assert "multiple of 64" in done.stderr
    done = athanor("tokenizer", "train", tmp_path / "none", "--out", tmp_path / "tok")
    assert done.returncode == 2
    assert "does not exist" in done.stderr
    assert not (tmp_path / "tok").exists()


def test_corpus_build_and_stats(athanor: Athanor, texts: Path, tmp_path: Path) -> None:
    done = athanor("corpus", "build", "--source", texts, "--no-decontaminate", "--out", tmp_path / "corpus", "--json")
    assert done.returncode == 0, done.stderr
    built = json.loads(done.stdout)
    kept = [built["totals"][kind]["documents"] for kind in ("training", "held_out")]
    assert sum(kept) > 50
    assert built == json.loads(athanor("corpus", "stats", tmp_path / "corpus", "--json").stdout)
    shown = athanor("corpus", "stats", tmp_path / "corpus").stdout
    assert "texts" in shown
    assert "skipped" in shown


def test_corpus_errors(athanor: Athanor, tmp_path: Path) -> None:
    assert "no finished corpus" in athanor("corpus", "stats", tmp_path).stderr
    (tmp_path / "report.json").write_text("{}")
    done = athanor("corpus", "stats", tmp_path, "--json")
    assert "not the report of a corpus" in json.loads(done.stdout)["error"]["message"]
    done = athanor("corpus", "build", "--source", tmp_path / "none", "--no-decontaminate", "--out", tmp_path / "corpus")
    assert (done.returncode, done.stdout) == (2, "")
    assert "none does not exist" in done.stderr


@pytest.fixture
def benchmarks(tmp_path: Path) -> Path:
    folder = tmp_path / "benchmarks"
    folder.mkdir()
    (folder / "_shared.py").write_text("UNIT = 's'\n")
    (folder / "speed.py").write_text(
        'ISSUE = "A"\nfrom _shared import UNIT\n\ndef rows():\n    print("noise")\n'
        '    yield {"metric": "time", "value": 1.5, "unit": UNIT, "target": 2.0, "peer": None, "met": True}\n'
        '    yield {"metric": "size", "value": 3, "unit": "MB", "met": False}\n'
    )
    (folder / "broken.py").write_text('ISSUE = "B"\n\ndef rows():\n    yield {"metric": "m", "value": 1}\n    1 / 0\n')
    (folder / "helper.py").write_text("raise SystemExit('not a benchmark')\n")
    return folder


def test_bench_rows_as_json(athanor: Athanor, benchmarks: Path) -> None:
    done = athanor("bench", "speed", "--json")
    assert done.returncode == 0, done.stderr
    first, second = map(json.loads, done.stdout.splitlines())
    assert first == {
        "bench": "speed", "metric": "time", "value": 1.5, "unit": "s", "target": 2.0, "peer": None, "ratio": None,
        "met": True,
    }  # fmt: skip
    assert second["met"] is False
    assert second["target"] is None
    assert "noise" in done.stderr


def test_bench_selects_and_survives_a_broken_one(athanor: Athanor, benchmarks: Path) -> None:
    done = athanor("bench")
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr
    assert "Failed (see above): broken." in done.stderr
    assert "time" in done.stdout
    assert "NO" in done.stdout
    assert "broken" not in athanor("bench", "--issue", "a").stdout


def test_bench_errors(athanor: Athanor, tmp_path: Path) -> None:
    assert "no folder benchmarks/" in athanor("bench").stderr
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "speed.py").write_text('ISSUE = "A"\n')
    assert "Did you mean speed?" in athanor("bench", "sped").stderr
    done = athanor("bench", "--issue", "Z")
    assert done.returncode == 2
    assert "Issues with benchmarks: A." in done.stderr
    done = athanor("bench", "speed")
    assert done.returncode == 1
    assert "rows" in done.stderr


def test_doctor(athanor: Athanor, tmp_path: Path) -> None:
    done = athanor("doctor", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["machine"]["cores"] >= 1
    assert found["rates"]["fp32"] > 1e8
    assert found["precision"] in ("fp32", "bf16")
    assert found["cache"]["folder"] == str(tmp_path / "cache")
    assert not any(found["cache"]["packages"].values())
    assert any("Not fetched" in entry["problem"] for entry in found["problems"])
    assert all(entry["advice"] for entry in found["problems"])


def test_each_problem_is_found() -> None:
    from athanor.cli.doctor import problems

    healthy = {
        "machine": {"system": "Linux x86_64", "cores": 2, "accelerator": None}, "available_memory": 8e9, "load": 0.1,
        "disk": {"folder": ".", "free": 9e9}, "torch": {"capability": "AVX512", "threads": 2},
        "rates": {"fp32": 1e11, "bf16": 4e11, "read": 2e10}, "precision": "bf16",
        "process": {"huge_pages": "heap", "OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": None},
        "cache": {"folder": "c", "writable": True, "packages": {"a": True}}, "pip": True,
        "kernels": {"instructions": "avx2", "missing": None},
        "nvidia_driver": False, "optional": {"pyarrow": "20"},
    }  # fmt: skip
    assert problems(healthy) == []
    ill = {
        "available_memory": 1e9, "load": 9.0, "disk": {"folder": ".", "free": 1e8}, "nvidia_driver": True,
        "kernels": {"instructions": None, "missing": "There is no C compiler."},
        "torch": {"capability": "DEFAULT", "threads": 1}, "precision": "fp32",
        "cache": {"folder": "c", "writable": False, "packages": {"a": True}}, "optional": {"pyarrow": None},
    }  # fmt: skip
    for name, value in ill.items():
        assert problems(healthy | {name: value}), name
