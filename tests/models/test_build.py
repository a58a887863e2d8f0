"""Building by hand: first weights of every family, and what a family cannot describe."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import log
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

import athanor.models as models
from athanor.base.errors import ModelError
from athanor.models.families import Config, read_config
from tests.models.family_rows import DECODERS, ENCODERS, PAIRS

transformers = pytest.importorskip("transformers")
ROWS = {**DECODERS, **ENCODERS, **PAIRS}


def config_of(row: str) -> Config:
    architecture, settings = ROWS[row]
    settings = getattr(transformers, architecture).config_class(**settings).to_dict()
    return read_config({**settings, "architectures": [architecture]}, row)[1]


def logits_of(model: Any, tokens: Tensor) -> Tensor:
    if isinstance(model, models.EncoderDecoder):
        return model(tokens, model.shifted(tokens))
    return model.encode(tokens) if isinstance(model, models.Encoder) and model.head is None else model(tokens)


@pytest.mark.parametrize("row", ROWS)
def test_first_weights(row: str) -> None:
    """Logits begin near zero, states near one; gradients are finite, and what starts at zero gets one."""
    config = config_of(row)
    model, tokens = models.new(config, 5), torch.randint(3, 96, (2, 20), generator=torch.Generator().manual_seed(1))
    made = logits_of(model, tokens)
    assert made.isfinite().all()
    assert made.std() < 1.2
    if made.shape[-1] == config.vocab_size:
        assert cross_entropy(made.flatten(0, 1), tokens.roll(1, 1).flatten()) < log(96) + 1
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(3):
        optimizer.zero_grad()
        logits_of(model, tokens).flatten().square().mean().backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
        optimizer.step()
    outputs = [p for name, p in model.named_parameters() if name.endswith(("mlp.down.weight", "_norms.output.weight"))]
    assert all(weight.grad is not None and weight.grad.abs().max() > 0 for weight in outputs)


def test_one_seed_gives_one_model() -> None:
    one, same, other = (models.new(config_of("t5"), seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["encoder.embedding.tokens.weight"], other["encoder.embedding.tokens.weight"])


def test_t5_scores_begin_as_those_of_a_model_that_scales_them() -> None:
    from athanor.models.config import EncoderDecoderConfig

    config = config_of("t5")
    assert isinstance(config, EncoderDecoderConfig)
    model = models.new(config)
    attention, states = model.encoder.blocks[0].attention, torch.randn(1000, config.d_model)
    queries, keys = attention.query(states)[:500, :10], attention.key(states)[500:, :10]
    assert 0.5 < (queries @ keys.T).std() < 2


PLAIN = models.standard_config(96, 64, d_model=48, n_layers=2, n_heads=4, head_dim=12)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"family": "qwen4"}, "no family 'qwen4'.*Known: albert, bart"),
        ({"norm": models.NormConfig(1e-6, "layer")}, "no setting for norm.kind = 'layer'"),
        ({"embedding": models.EmbeddingConfig(positions=64)}, "no setting for embedding.positions = 64"),
        ({"causal": False}, "no setting for causal = False"),
        ({"family": "t5"}, "cannot be written as one of the family t5"),
        ({"causal": False, "head": None}, "cannot be written as one of the family qwen3"),
        ({"layers": (replace(PLAIN.layers[0], placement="after"),) * 2}, r"layers\[0\].placement = 'after'.*'pre'"),
    ],
)
def test_what_a_family_cannot_describe_is_not_saved(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=said):
        models.save(models.new(replace(PLAIN, **changes)), tmp_path)
    assert not (tmp_path / "config.json").exists()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: models.NormConfig(kind="l2"), r"norm kind = 'l2' is not known.*rms, layer"),
        (lambda: models.AttentionConfig(4, 2, 16, qk_norm="heads"), r"qk_norm = 'heads'.*head, each, projection"),
        (lambda: models.MlpConfig(32, activation="swish"), r"activation = 'swish'.*silu, gelu"),
        (lambda: models.MoeConfig(4, 2, models.MlpConfig(32), scores="tanh"), r"scores = 'tanh'.*softmax, sigmoid"),
        (lambda: models.HeadConfig(transform="dense"), r"transform = 'dense'"),
        (lambda: models.ConvolutionConfig(3, "swish"), r"activation = 'swish'"),
        (lambda: models.RopeScaling("ntk", 2.0, 64), r"rope scaling: kind = 'ntk'.*linear, dynamic"),
        (
            lambda: models.LayerConfig(models.AttentionConfig(4, 2, 16), models.MlpConfig(32), placement="before"),
            r"placement = 'before'.*pre, post, sandwich",
        ),
    ],
)  # fmt: skip
def test_a_word_that_means_nothing_is_refused(make: Callable[[], Any], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        make()
