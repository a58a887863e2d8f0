"""A whole life in seconds, from text that the tests make: what runs are tried on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from athanor.base.randomness import generator

_WORDS = [
    "the", "a", "river", "stone", "house", "old", "green", "walks", "sings", "and", "under", "over", "bright", "night",
    "morning", "bread", "water", "road", "tall", "small",
]  # fmt: skip
_SIGNS = "山水天地人日月风云花鸟江河大小上下来去有无"

TINY = """
seed = 1
precision = "fp32"
threads = 1
[corpus]
sources = ["{texts}"]
decontaminate = false
held_out_share = 0.1
[tokenizer]
vocab_size = 512
[model]
d_model = 64
n_layers = 1
n_heads = 2
n_kv_heads = 1
head_dim = 32
d_ff = 128
max_seq_len = 256
[pretrain]
steps = 24
rows = 4
length = 64
checkpoint_every = 4
evaluate_every = 8
[sft]
sources = []
conversations = 300
steps = 24
rows = 4
length = 192
checkpoint_every = 4
[rl]
environments = ["comparing", "copying"]
steps = 4
prompts = 4
group = 4
max_tokens = 24
length = 192
checkpoint_every = 1
[evaluate]
held_out_tokens = 1000
problems = 40
samples = 8
per_task = 2
"""


@pytest.fixture
def tiny_recipe(tmp_path: Path) -> Path:
    """A recipe file, with its texts beside it."""
    return make_recipe(tmp_path)


def make_recipe(folder: Path) -> Path:
    texts = folder / "texts"
    texts.mkdir()
    random = generator(0, "tests", "texts")
    for number in range(120):
        words = [_WORDS[int(i)] for i in random.integers(len(_WORDS), size=60)]
        signs = [_SIGNS[int(i)] for i in random.integers(len(_SIGNS), size=60)]
        text = " ".join(words).capitalize() + "." if number % 3 else "".join(signs) + "。"
        (texts / f"{number:03d}.txt").write_text(text, encoding="utf-8")
    path = folder / "tiny.toml"
    path.write_text(TINY.format(texts=texts), encoding="utf-8")
    return path


def athanor_process(*arguments: str, folder: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ATHANOR_QUIET": "0"}
    return subprocess.Popen(
        [sys.executable, "-m", "athanor.cli.main", *arguments],
        cwd=folder,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def athanor(*arguments: str, folder: Path) -> str:
    """Standard output of a command that must succeed."""
    process = athanor_process(*arguments, folder=folder)
    out, err = process.communicate()
    assert process.returncode == 0, err
    return out
