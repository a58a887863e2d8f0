"""The n-gram memory: what it adds, that it sees the same however a text is fed, and its table beside the model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from athanor.base.errors import ModelError
from athanor.engine.conversion import convert
from athanor.models.build import build
from athanor.models.cache import Cache
from athanor.models.config import EmbeddingConfig, standard_config
from athanor.models.decoder import Decoder
from athanor.models.folder import load_decoder, save_model
from athanor.models.gguf.save import save_gguf
from athanor.models.ngrams import NGrams

TEXT = np.random.default_rng(0).integers(0, 12, 3000)


@pytest.fixture
def model() -> Decoder:
    made = build(standard_config(12, 64, d_model=16, n_layers=2, head_dim=8, ngrams=3), 1).eval()
    assert made.embedding.memory is not None
    made.embedding.memory.table = NGrams.count(TEXT, 12, 3).pruned()
    with torch.no_grad():
        for number, parameter in enumerate(made.parameters()):
            parameter += 0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
    return made


def text(n: int, seed: int = 3) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 12, (1, n)))


@torch.no_grad()
def test_it_adds_the_mean_of_the_followers_embeddings(model: Decoder) -> None:
    tokens, memory = text(10), model.embedding.memory
    assert memory is not None
    followers = memory.look_up(tokens)
    plain = model.embedding(tokens, torch.arange(10)[None])
    with_memory = model.embedding(tokens, torch.arange(10)[None], followers=followers)
    mean = torch.einsum("btw,btwd->btd", followers.shares, model.embedding.tokens.weight[followers.words])
    assert float(mean.abs().max()) > 0.1
    torch.testing.assert_close(with_memory - plain, mean @ memory.project.weight.T, atol=1e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("cuts", [[1] * 12, [5, 1, 6], [3, 9]])
def test_step_by_step_is_the_whole_text(model: Decoder, cuts: list[int]) -> None:
    tokens, cache = text(12), Cache(2)
    parts = [model(part, cache=cache) for part in tokens.split(cuts, 1)]
    torch.testing.assert_close(torch.cat(parts, 1), model(tokens), atol=1e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_no_context(model: Decoder, side: str) -> None:
    tokens, pad, ones = text(9), text(4, 5), torch.ones(1, 9, dtype=torch.int64)
    pair = [(pad, torch.zeros_like(pad)), (tokens, ones)][:: 1 if side == "left" else -1]
    rows, mask = (torch.cat(parts, 1) for parts in zip(*pair, strict=True))
    found = model(rows, attention_mask=mask)
    wanted = found[:, 4:] if side == "left" else found[:, :9]
    torch.testing.assert_close(wanted, model(tokens), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_packed_documents_do_not_see_one_another(model: Decoder) -> None:
    one, other = text(7), text(6, 4)
    ids = torch.tensor([[0] * 7 + [1] * 6])
    positions = torch.cat([torch.arange(7), torch.arange(6)])[None]
    packed = model(torch.cat([one, other], 1), positions=positions, document_ids=ids)
    torch.testing.assert_close(packed, torch.cat([model(one), model(other)], 1), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_the_table_goes_with_the_model(model: Decoder, tmp_path: Path) -> None:
    save_model(model, tmp_path / "m")
    again = load_decoder(tmp_path / "m")
    assert again.config == model.config
    assert torch.equal(again(text(20)), model(text(20)))
    (tmp_path / "m" / "ngrams.safetensors").unlink()
    with pytest.raises(ModelError, match="missing"):
        load_decoder(tmp_path / "m")


def test_nobody_else_is_told_that_it_is_plain(model: Decoder, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="n-gram memory"):
        save_gguf(model, tmp_path / "m.gguf")
    assert not list(tmp_path.iterdir())


def test_whoever_exports_it_is_told(model: Decoder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_model(model, tmp_path / "mine")
    made = convert(tmp_path / "mine", tmp_path / "theirs", "hf")
    assert not made.portable
    assert "computed by Athanor alone" in capsys.readouterr().err


def test_it_must_be_counted_first() -> None:
    with pytest.raises(ModelError, match="has not been counted"):
        build(standard_config(12, 64, d_model=16, n_layers=1, head_dim=8, ngrams=2), 0)(text(4))
    for wrong in ({"ngrams": 17}, {"ngrams": 2, "size": 8}, {"ngrams": 2, "scale": 2.0}, {"ngrams": -1}):
        with pytest.raises(ModelError):
            EmbeddingConfig(**wrong)  # type: ignore[arg-type]
