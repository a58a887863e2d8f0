"""The decoder: hand-written gradients against autograd, packing against none, and all of it against transformers'
Qwen3.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from athanor.base.errors import ModelError
from athanor.base.randomness import generator
from athanor.models.build import build, count_parameters
from athanor.models.config import (
    AttentionConfig,
    HeadConfig,
    LayerConfig,
    MlpConfig,
    ModelConfig,
    NormConfig,
    standard_config,
)
from athanor.models.decoder import Decoder
from athanor.models.folder import their_weights
from athanor.models.norm import RMSNorm
from athanor.models.position_config import RopeConfig
from athanor.models.rope import rotary_angles, rotate


def tiny_config(
    heads: tuple[int, int, int] = (4, 2, 12),
    *,
    n_layers: int = 2,
    d_ff: int = 56,
    theta: float = 10_000.0,
    epsilon: float = 1e-6,
    tied: bool = True,
    vocab_size: int = 97,
    d_model: int = 40,
) -> ModelConfig:
    attention = AttentionConfig(*heads, position=RopeConfig(theta), qk_norm="head")
    layer = LayerConfig(attention, MlpConfig(d_ff), NormConfig(epsilon))
    return ModelConfig(
        vocab_size, d_model, 64, (layer,) * n_layers, norm=NormConfig(epsilon), head=HeadConfig(tied=tied)
    )


def perturbed(config: ModelConfig, seed: int = 0) -> Decoder:
    """Every weight random, norms included, so that no term is multiplied by zero or one."""
    model = Decoder(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            draw = torch.from_numpy(generator(seed, name).standard_normal(parameter.shape, dtype=np.float32))
            parameter.copy_(1 + 0.2 * draw if parameter.dim() == 1 else 0.25 * draw)
    return model


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(generator(seed, "input", *shape).standard_normal(shape, dtype=np.float32))


def gradients_of(function: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor]:
    """Gradients of a random weighting of the output."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    out = function(*leaves)
    (out * normal(*out.shape, seed=9).to(out.dtype)).sum().backward()
    return [out.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


@pytest.mark.parametrize("shape", [(2, 3, 16), (2, 3, 4, 8), (1, 1, 2), (5, 7)])
@pytest.mark.parametrize(("epsilon", "offset"), [(1e-6, 0.0), (1e-2, 0.0), (1e-6, 1.0)])
def test_rms_norm_equals_torchs_own_in_value_and_gradient(
    shape: tuple[int, ...], epsilon: float, offset: float
) -> None:
    weight = 1 - offset + 0.3 * normal(shape[-1])

    def ours(x: Tensor, weight: Tensor) -> Tensor:
        from athanor.models.norm import _RmsNorm

        return _RmsNorm.apply(x, weight, epsilon, offset)

    def plain(x: Tensor, weight: Tensor) -> Tensor:
        return torch.nn.functional.rms_norm(x, x.shape[-1:], weight + offset, epsilon)

    for got, wanted in zip(
        gradients_of(ours, normal(*shape), weight), gradients_of(plain, normal(*shape), weight), strict=True
    ):
        torch.testing.assert_close(got, wanted, atol=2e-6, rtol=2e-5)


def test_rms_norm_of_bf16_is_taken_in_fp32() -> None:
    norm = RMSNorm(64, NormConfig())
    x = (1000 * normal(4, 64)).bfloat16()
    torch.testing.assert_close(norm(x), norm(x.float()).bfloat16(), atol=0.02, rtol=0.01)
    assert norm(x).dtype == torch.bfloat16
    assert norm(torch.zeros(2, 64)).abs().max() == 0


def test_small_gains_beside_an_offset_count_in_bf16() -> None:
    """Gemma's, which bf16 would round away from 1.003."""
    norm = RMSNorm(64, NormConfig(offset=1.0)).bfloat16()
    torch.nn.init.constant_(norm.weight, 0.003)
    x = normal(4000, 64).bfloat16()
    grown = norm(x).detach().float() / torch.nn.functional.rms_norm(x.float(), (64,), eps=1e-6)
    assert abs(float(grown.median()) - 1.003) < 5e-4


@pytest.mark.parametrize("theta", [10_000.0, 1e6])
def test_rotation_equals_complex_multiplication_in_value_and_gradient(theta: float) -> None:
    x, positions = normal(2, 5, 3, 8), torch.tensor([[0, 1, 2, 3, 40], [7, 7, 0, 1, 2]])
    angles = rotary_angles(positions, 8, RopeConfig(theta))

    def complex_plane(x: Tensor) -> Tensor:
        frequencies = theta ** (-torch.arange(4) / 4)
        turn = torch.polar(torch.ones(2, 5, 4), positions[..., None] * frequencies)[:, :, None, :]
        turned = torch.complex(x[..., :4], x[..., 4:]) * turn
        return torch.cat([turned.real, turned.imag], dim=-1)

    for got, wanted in zip(gradients_of(lambda x: rotate(x, *angles), x), gradients_of(complex_plane, x), strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)


def test_rotation_passes_gradcheck_also_for_views() -> None:
    positions = torch.arange(3).expand(2, 3)
    cosine, sine = (a.double() for a in rotary_angles(positions, 4, RopeConfig()))
    x = normal(2, 3, 2, 4).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: rotate(x, cosine, sine), (x,))
    assert torch.autograd.gradcheck(lambda x: rotate(x.flip(1), cosine, sine).transpose(1, 2), (x,))


ODD_CONFIGS = [
    pytest.param(tiny_config(), id="head_dim times heads is not d_model"),
    pytest.param(tiny_config((3, 1, 8)), id="one key-value head"),
    pytest.param(tiny_config((5, 5, 6), tied=False), id="untied, no groups"),
    pytest.param(tiny_config(theta=1e6, epsilon=1e-3, n_layers=3), id="other constants"),
    pytest.param(tiny_config((1, 1, 2), d_model=6, d_ff=1), id="minute"),
]


def peer_of(model: Decoder) -> Any:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = model.config
    attention, mlp = config.layers[0].attention, config.layers[0].mlp
    assert isinstance(attention, AttentionConfig)
    assert isinstance(attention.position, RopeConfig)
    assert isinstance(mlp, MlpConfig)
    peer = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=config.vocab_size,
            hidden_size=config.d_model,
            intermediate_size=mlp.d_ff,
            num_hidden_layers=config.n_layers,
            num_attention_heads=attention.n_heads,
            num_key_value_heads=attention.n_kv_heads,
            head_dim=attention.head_dim,
            max_position_embeddings=config.max_seq_len,
            rms_norm_eps=config.layers[0].norm.epsilon,
            rope_parameters={"rope_type": "default", "rope_theta": attention.position.theta},
            tie_word_embeddings=model.head.weight is None,
            attn_implementation="eager",
            pad_token_id=None,
        )
    ).float()
    names = dict(peer.named_parameters())
    with torch.no_grad():
        for name, weight in their_weights(model).items():
            names[name].copy_(weight)
    return peer


@pytest.mark.parametrize("config", ODD_CONFIGS)
def test_logits_and_every_gradient_equal_transformers(config: ModelConfig) -> None:
    model = perturbed(config)
    peer = peer_of(model)
    tokens = torch.from_numpy(generator(1, "tokens").integers(0, config.vocab_size, (2, 17)))
    ours, theirs = model(tokens), peer(tokens, use_cache=False).logits
    torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=1e-4)
    weighting = normal(*ours.shape, seed=3)
    (ours * weighting).sum().backward()
    (theirs * weighting).sum().backward()
    names = dict(peer.named_parameters())
    gradients = Decoder(config)
    for to, parameter in zip(gradients.parameters(), model.parameters(), strict=True):
        assert parameter.grad is not None
        to.data = parameter.grad
    for name, gradient in their_weights(gradients).items():
        wanted = names[name].grad
        error = (gradient - wanted).norm() / wanted.norm()
        assert error < 1e-4, f"{name}: relative error {error:.2e}"


@pytest.mark.parametrize("config", ODD_CONFIGS)
def test_packed_logits_equal_unpacked(config: ModelConfig) -> None:
    model = perturbed(config, 1)
    pieces = [torch.from_numpy(generator(2, "piece", n).integers(0, config.vocab_size, n)) for n in (1, 9, 5, 16)]
    padding = torch.zeros(3, dtype=torch.int64)
    row = torch.cat([*pieces, padding])[None]
    ids = torch.cat([torch.full((len(p),), i) for i, p in enumerate(pieces)] + [padding - 1])[None]
    positions = torch.cat([torch.arange(len(p)) for p in pieces] + [padding])[None]
    with torch.no_grad():
        packed = model(row, positions=positions, document_ids=ids)[0]
        start = 0
        for piece in pieces:
            alone = model(piece[None])[0]
            scale = alone.abs().max()
            torch.testing.assert_close(packed[start : start + len(piece)] / scale, alone / scale, atol=1e-5, rtol=0)
            start += len(piece)
    assert torch.isfinite(packed).all(), "padding attends to itself"


def test_later_tokens_do_not_change_earlier_logits() -> None:
    model = perturbed(tiny_config())
    tokens = torch.arange(20)[None] % 97
    changed = tokens.clone()
    changed[0, 12:] += 1
    with torch.no_grad():
        assert torch.equal(model(tokens)[:, :12], model(changed)[:, :12])


def test_initialisation_depends_on_seed_and_names_alone() -> None:
    small, again, other = build(tiny_config(), 3), build(tiny_config(), 3), build(tiny_config(), 4)
    deep = dict(build(tiny_config(n_layers=4), 3).named_parameters())
    torch.manual_seed(5)
    for name, parameter in small.named_parameters():
        assert torch.equal(parameter, dict(again.named_parameters())[name])
        assert torch.equal(parameter, deep[name]), "more layers leave the first ones as they were"
    assert not torch.equal(small.embedding.tokens.weight, other.embedding.tokens.weight)
    layers = [p for name, p in deep.items() if name.endswith("gate.weight")]
    assert not torch.equal(layers[0], layers[1])


def test_a_fresh_model_predicts_nearly_uniformly() -> None:
    model = build(tiny_config(), 0)
    with torch.no_grad():
        entropy = torch.distributions.Categorical(logits=model(torch.arange(30)[None])).entropy()
    assert entropy.min() > 0.97 * np.log(97)


@pytest.mark.parametrize("tied", [True, False])
def test_counted_parameters_are_the_modules(tied: bool) -> None:
    config = tiny_config(tied=tied)
    model = Decoder(config)
    assert count_parameters(config) == sum(p.numel() for p in model.parameters())
    matrices = sum(p.numel() for name, p in model.named_parameters() if p.dim() == 2 and name.startswith("blocks"))
    assert config.matrix_parameters == matrices + model.head_weight.numel()


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: AttentionConfig(6, 4, 8), "n_heads = 6 is not a multiple of n_kv_heads = 4.*1, 2, 3, 6"),
        (lambda: AttentionConfig(4, 8, 8), "n_kv_heads = 8"),
        (lambda: AttentionConfig(4, 2, 7), "head_dim = 7 .*odd"),
        (lambda: AttentionConfig(0, 1, 8), "n_heads = 0"),
        (lambda: AttentionConfig(4, 2, 8.0), "head_dim = 8.0"),  # type: ignore[arg-type]
        (lambda: RopeConfig(0.0), "rope_theta = 0.0"),
        (lambda: RopeConfig(float("nan")), "rope_theta = nan"),
        (lambda: NormConfig(-1e-6), "epsilon"),
        (lambda: NormConfig(float("nan")), "epsilon"),
        (lambda: MlpConfig(-1), "d_ff = -1"),
        (lambda: tiny_config(vocab_size=0), "vocab_size = 0"),
        (lambda: tiny_config(n_layers=0), "n_layers = 0"),
        (lambda: tiny_config(d_model="64"), "d_model = '64'"),  # type: ignore[arg-type]
    ],
)
def test_an_impossible_model_is_refused_by_name(make: Callable[[], Any], named: str) -> None:
    with pytest.raises(ModelError, match=named):
        make()


def test_bf16_autocast_is_close_in_value_and_gradient() -> None:
    config = tiny_config((4, 2, 16), d_model=64, d_ff=128)
    model = build(config, 0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("output.weight", "down.weight")):
                parameter.copy_(0.1 * normal(*parameter.shape))
    tokens = torch.arange(32).view(2, 16)
    outputs = []
    for enabled in (False, True):
        model.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = torch.nn.functional.cross_entropy(model(tokens).flatten(0, 1).float(), tokens.roll(-1, 1).flatten())
        loss.backward()
        outputs.append(
            (loss.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
        )
    assert outputs[0][0] == pytest.approx(outputs[1][0], rel=5e-3)
    for name, wanted in outputs[0][1].items():
        got = outputs[1][1][name]
        assert got.dtype == torch.float32
        assert torch.nn.functional.cosine_similarity(got.flatten(), wanted.flatten(), dim=0) > 0.99, name


def test_what_cannot_be_read_is_said() -> None:
    model = build(standard_config(32, 16, d_model=64, n_layers=1), 0)
    with pytest.raises(ModelError, match=r"shape \(3,\)"):
        model(torch.tensor([1, 2, 3]))
    with pytest.raises(ModelError, match="float32"):
        model(torch.ones(1, 3))
    with pytest.raises(ModelError, match="Ids from 1 to 32 do not fit into a vocabulary of 32"):
        model(torch.tensor([[1, 32]]))
    with pytest.raises(ModelError, match=r"\(1, 2\) instead of \(1, 3\)"):
        model(torch.ones(1, 3, dtype=torch.long), attention_mask=torch.ones(1, 2))
