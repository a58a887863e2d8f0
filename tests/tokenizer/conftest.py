"""A small English and Chinese corpus made here, and the tokenizer trained on it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from athanor.base.randomness import generator
from athanor.tokenizer import Tokenizer, train_tokenizer

ENGLISH = re.split(
    " ",
    "the an old furnace burns slowly under a quiet roof while three children read letters and numbers aloud; nobody "
    "knows who wrote them, but they're sure that it wasn't Tom's. Water boils at 100 degrees, doesn't it? We'll see.",
)
CHINESE = [
    "炉火",
    "慢慢",
    "燃烧",
    "的",
    "孩子们",
    "在",
    "读书",
    "，",
    "没有人",
    "知道",
    "是谁",
    "写的",
    "。",
    "水",
    "沸腾",
    "了",
    "！\n",
]


@pytest.fixture(scope="session")
def sentences() -> list[str]:
    random = generator(7, "tokenizer-tests")
    texts = []
    for index in range(400):
        words, glue = (CHINESE, "") if index % 2 else (ENGLISH, " ")
        texts.append(glue.join(words[i] for i in random.integers(0, len(words), size=30)))
    return texts


@pytest.fixture(scope="session")
def tokenizer(sentences: list[str]) -> Tokenizer:
    return train_tokenizer(sentences, vocab_size=768)


@pytest.fixture(scope="session")
def folder(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    tokenizer.save(path, max_length=1024)
    return path


@pytest.fixture(scope="session")
def peer(folder: Path) -> PreTrainedTokenizerBase:
    """transformers on our folder."""
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


@pytest.fixture(scope="session")
def plain_peer(folder: Path) -> PreTrainedTokenizerBase:
    """The same, told to treat control tokens in text as text."""
    return AutoTokenizer.from_pretrained(folder, local_files_only=True, split_special_tokens=True)
