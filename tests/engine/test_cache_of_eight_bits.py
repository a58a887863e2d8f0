"""Keys and values of 8 bits in the engine, on both rungs: answers are those given alone, with what was put aside and
fetched back, and with a beginning that is known.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from athanor.base.errors import ModelError
from athanor.engine.engine import Engine
from athanor.engine.language_model import load
from athanor.engine.native.compiling import compilers
from athanor.engine.native_rung import NativeRung
from athanor.engine.requests import Request
from athanor.engine.rung import Rung
from athanor.engine.sampling import Sampling
from athanor.engine.torch_rung import TorchRung
from athanor.models.decoder import Decoder
from tests.engine.asked import requests, tokens
from tests.engine.conftest import random_model

RUNGS: dict[str, Callable[[Decoder], Rung]] = {
    "native": lambda model: NativeRung(model, "bf16", cache="int8"),
    "torch": lambda model: TorchRung(model, cache="int8"),
}


@pytest.fixture(params=RUNGS)
def engine(request: pytest.FixtureRequest) -> Callable[..., Engine]:
    if request.param == "native" and not compilers():
        pytest.skip("there is no C compiler")
    model = random_model(5, max_seq_len=400)
    return lambda **more: Engine(RUNGS[request.param](model), model.config, None, **more)


def test_answers_are_those_given_alone(engine: Callable[..., Engine]) -> None:
    some = requests(10)
    expected = [tokens(engine().generate([one])[0]) for one in some]
    crowded = engine(blocks=27, most_tokens=33)
    assert [tokens(each) for each in crowded.generate(some)] == expected
    assert crowded.preemptions > 0


def test_a_known_beginning_is_not_read_again(engine: Callable[..., Engine]) -> None:
    one, prompt = engine(), [7 * i % 384 for i in range(200)]
    first, second = (one.submit(Request([*prompt, 5], Sampling(temperature=0, max_tokens=20))) for _ in range(2))
    said = [[event.token for event in handle] for handle in (first, second)]
    third = one.submit(Request([*prompt, 5], Sampling(temperature=0, max_tokens=20)))
    assert [event.token for event in third] == said[0] == said[1]
    assert third.cached_tokens == 192


def test_a_model_is_loaded_with_it(folder: Path) -> None:
    lm = load(folder, cache="int8")
    usual = load(folder)
    assert lm.generate("the old", temperature=0, max_tokens=5).text
    assert usual.generate("the old", temperature=0, max_tokens=5).text
    assert lm.engine.rung.bytes_per_block < 0.5 * usual.engine.rung.bytes_per_block
    with pytest.raises(ModelError, match="Accepted: auto, int8"):
        load(folder, cache="int4").generate("the old")  # type: ignore[arg-type]
