"""Models whose layers all have a window keep no more of a text than the widest one sees, on both rungs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from athanor.engine.engine import Engine
from athanor.engine.native.compiling import compilers
from athanor.engine.native_rung import NativeRung
from athanor.engine.requests import Request
from athanor.engine.rung import Rung
from athanor.engine.sampling import Sampling
from athanor.engine.torch_rung import TorchRung
from athanor.models.decoder import Decoder
from tests.engine.conftest import random_model

WINDOW, LENGTH = 24, 700
RUNGS: dict[str, Callable[[Decoder], Rung]] = {"torch": TorchRung}
if compilers():
    RUNGS["native"] = lambda model: NativeRung(model, "fp32", threads=1)


@pytest.fixture(scope="module")
def model() -> Decoder:
    plain = random_model(7, max_seq_len=LENGTH)
    near, nearer = (
        replace(layer, attention=replace(layer.attention, window=window))
        for layer, window in zip(plain.config.layers, (WINDOW, WINDOW // 2), strict=True)
    )
    narrow = Decoder(replace(plain.config, layers=(near, nearer)))
    narrow.load_state_dict(plain.state_dict())
    return narrow.eval()


@pytest.fixture(params=RUNGS)
def rung(request: pytest.FixtureRequest, model: Decoder) -> Callable[[], Rung]:
    return lambda: RUNGS[request.param](model)


def requests() -> list[Request]:
    rng = np.random.default_rng(0)
    shared = rng.integers(0, 384, 80).tolist()
    return [
        Request(
            [*(shared if i % 2 else []), *rng.integers(0, 384, int(rng.integers(1, 150))).tolist()],
            Sampling(temperature=1.0, seed=i, max_tokens=int(rng.integers(30, 120)), n=1 + i % 3),
        )
        for i in range(6)
    ]


def test_memory_is_flat_while_an_answer_goes_on(model: Decoder, rung: Callable[[], Rung]) -> None:
    engine = Engine(rung(), model.config, most_tokens=64)
    handle = engine.submit(Request(list(range(100)), Sampling(temperature=0, max_tokens=500)))
    held = []
    while engine.step():
        held.append(engine.blocks - engine.free_blocks)
    said = handle.result()[0].tokens
    assert len(said) == 500
    assert max(held) <= (WINDOW + 64) // 16 + 2
    assert max(held[10:]) <= WINDOW // 16 + 2
    assert engine.free_blocks == engine.blocks
    with torch.no_grad():
        logits = model(torch.tensor([[*range(100), *said]]))[0, 99:-1]
    chosen = logits.gather(1, torch.tensor(said)[:, None])[:, 0]
    assert (logits.max(1).values - chosen).max() < 1e-3


def test_what_is_said_is_the_same_as_alone(model: Decoder, rung: Callable[[], Rung]) -> None:
    some = requests()
    alone = [Engine(rung(), model.config).generate([request])[0] for request in some]
    for settings in ({}, {"most_tokens": 7}, {"blocks": 16, "most_tokens": 32}):
        engine = Engine(rung(), model.config, **settings)
        for _ in range(2):  # the second time every beginning has been read
            said = engine.generate(some)
            assert [[c.logprobs for c in each] for each in said] == [[c.logprobs for c in each] for each in alone]
        assert engine.free_blocks == engine.blocks
        assert not any(engine._scheduler.pool._owners)
        assert (engine.preemptions > 0) == ("blocks" in settings)


def test_an_answer_may_be_longer_than_the_cache(model: Decoder, rung: Callable[[], Rung]) -> None:
    request = Request(list(range(300)), Sampling(temperature=1, seed=1, max_tokens=300))
    expected = Engine(rung(), model.config).generate([request])
    engine = Engine(rung(), model.config, blocks=6, most_tokens=32)
    assert engine.generate([request, request]) == [expected[0], expected[0]]
    assert engine.generate([request]) == expected
