"""A tiny Qwen3-shaped model with every weight random, and a tokenizer that fits it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from athanor.base.randomness import generator
from athanor.engine.language_model import LanguageModel, load
from athanor.engine.native.compiling import compilers
from athanor.engine.native_rung import NativeRung
from athanor.engine.torch_rung import TorchRung
from athanor.models.config import AttentionConfig, HeadConfig, LayerConfig, MlpConfig, ModelConfig
from athanor.models.decoder import Decoder
from athanor.models.folder import save_model
from athanor.models.gguf.blocks import Blocks
from athanor.models.gguf.packing import pack
from athanor.tokenizer import Tokenizer, train_tokenizer
from tests.engine.asked import alone, requests

TEXTS = [
    "the old furnace burns slowly while children read letters and numbers aloud",
    "炉火慢慢燃烧，孩子们在读书。没有人知道",
]

RUNGS = (
    pytest.param(TorchRung, id="torch"),
    pytest.param(NativeRung, id="C", marks=pytest.mark.skipif(not compilers(), reason="there is no C compiler")),
)


def random_model(seed: int, vocab_size: int = 384, max_seq_len: int = 64, tied: bool = True, d_ff: int = 48) -> Decoder:
    layer = LayerConfig(AttentionConfig(4, 2, 8, qk_norm="head"), MlpConfig(d_ff))
    config = ModelConfig(vocab_size, 32, max_seq_len, (layer,) * 2, head=HeadConfig(tied=tied))
    model = Decoder(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            draw = generator(seed, "test model", name).standard_normal(parameter.shape, dtype=np.float32)
            scale = 0.3 if parameter.dim() == 2 else 0.1
            parameter.copy_(torch.from_numpy(draw) * scale + (parameter.dim() == 1))
    return model.eval()


def blocks_of(model: Decoder, kind: str) -> dict[str, Blocks]:
    """The model's matrices as a GGUF file would have them; other kinds than `kind` outside of its layers."""
    made = {}
    for name, weight in model.named_parameters():
        if weight.dim() == 2 and weight.shape[1] % 32 == 0:
            own = kind if name.startswith("blocks.") else "Q8_0"
            made[name] = Blocks(own, torch.from_numpy(pack(weight.detach(), own)).view(len(weight), -1), own)
    return made


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return train_tokenizer(TEXTS * 3, vocab_size=384)


@pytest.fixture(scope="session")
def model(tokenizer: Tokenizer) -> Decoder:
    return random_model(3, tokenizer.vocab_size)


@pytest.fixture(scope="session")
def folder(model: Decoder, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("engine") / "model"
    tokenizer.save(path, model.config.max_seq_len)
    save_model(model, path, end_of_text_id=tokenizer.end_of_text_id, stop_ids=tokenizer.stop_ids, lineage={})
    return path


@pytest.fixture(scope="session")
def lm(folder: Path) -> LanguageModel:
    return load(folder)


@pytest.fixture(scope="session")
def long_model() -> Decoder:
    return random_model(5, max_seq_len=400)


@pytest.fixture(scope="session")
def expected(long_model: Decoder) -> list[list[list[int]]]:
    """What each of requests(16) says alone."""
    return alone(long_model, requests(16))
