"""On every path there is, a request says among others, in parts, put aside, a second time and with guesses what it says
alone: for each number format of each rung, with both caches, by each set of instructions.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from athanor.engine.engine import Engine
from athanor.engine.native import library
from athanor.engine.native.compiling import compilers
from athanor.engine.native.library import INSTRUCTIONS
from athanor.engine.native_rung import NativeRung
from athanor.engine.requests import Request
from athanor.engine.rung import Rung
from athanor.engine.source_rung import SourceRung
from athanor.engine.speculation import Speculation
from athanor.engine.torch_rung import TorchRung
from athanor.models.decoder import Decoder
from athanor.models.encoder_decoder import EncoderDecoder
from athanor.models.gguf.blocks import TAKEN
from tests.engine.asked import requests
from tests.engine.conftest import blocks_of, random_model
from tests.engine.test_speculation import Oracle, always, said_by

needs_compiler = pytest.mark.skipif(not compilers(), reason="there is no C compiler")
NATIVE: tuple[tuple[str, dict[str, Any]], ...] = (
    *((form, {}) for form in ("fp32", "bf16", "int8", "int4")),
    *((form, {"cache": "int8"}) for form in ("fp32", "bf16", "int4")),
    ("int8", {"wide": True}),
    ("int4", {"wide": True}),
)
TORCH = [(precision, "auto") for precision in ("fp32", "bf16", "int8", "int4")] + [("fp32", "int8"), ("int4", "int8")]


@pytest.fixture(scope="module")
def model() -> Decoder:
    return random_model(5, max_seq_len=400, d_ff=64)


@pytest.fixture(autouse=True)
def guessing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Speculation, "_choose", always)


def check(make: Callable[[], Rung], config: Any, some: list[Request], blocks: int = 21) -> None:
    alone = [said_by(Engine(make(), config), [request])[0] for request in some]
    assert said_by(Engine(make(), config), some) == alone
    limits = {"blocks": blocks, "most_tokens": 40, "most_running": 9}
    engine = Engine(make(), config, **limits, drafter=Oracle(some, alone, 0.3))
    for _ in range(2):
        assert said_by(engine, some) == alone
    assert engine.preemptions, "nothing was put aside"
    assert engine.speculation is not None
    assert engine.speculation.accepted
    assert engine.free_blocks == engine.blocks


def endless(n: int) -> list[Request]:
    """Short prompts, answers as long as they may be."""
    return unstopped(requests(n, longest=40))


def unstopped(some: list[Request]) -> list[Request]:
    return [replace(request, stop_ids=frozenset()) for request in some]


@pytest.mark.parametrize(("precision", "cache"), TORCH)
def test_in_torch(model: Decoder, precision: str, cache: Any) -> None:
    check(lambda: TorchRung(model, precision, cache), model.config, endless(6), blocks=13)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU")
@pytest.mark.parametrize(
    ("precision", "cache"), [("fp32", "auto"), ("bf16", "auto"), ("fp16", "auto"), ("bf16", "int8")]
)
def test_on_a_gpu(model: Decoder, precision: str, cache: Any) -> None:
    there = copy.deepcopy(model).to("cuda")
    check(lambda: TorchRung(there, precision, cache), model.config, endless(6), blocks=13)


@needs_compiler
@pytest.mark.parametrize(("form", "more"), NATIVE)
def test_in_c(model: Decoder, form: Any, more: dict[str, Any]) -> None:
    check(lambda: NativeRung(model, form, **more), model.config, requests(12))


@needs_compiler
@pytest.mark.parametrize("wide", [False, True], ids=["8 bits", "16 bits"])
@pytest.mark.parametrize("kind", TAKEN)
def test_with_blocks_of_a_gguf_file(model: Decoder, kind: str, wide: bool) -> None:
    blocks = blocks_of(model, kind)
    check(lambda: NativeRung(model, "bf16", blocks=blocks, wide=wide), model.config, requests(12))


@needs_compiler
@pytest.mark.parametrize("instructions", INSTRUCTIONS)
def test_by_every_set_of_instructions(model: Decoder, instructions: str) -> None:
    if INSTRUCTIONS.index(instructions) > INSTRUCTIONS.index(library.best_instructions()):
        pytest.skip(f"this processor has no {instructions}")
    blocks = blocks_of(model, "Q4_1")
    for form, more in (("bf16", {}), ("int4", {}), ("bf16", {"blocks": blocks, "wide": True})):
        make = partial(NativeRung, model, form, **more, instructions=instructions)
        check(make, model.config, requests(5, longest=60), blocks=13)


@pytest.mark.parametrize(("precision", "cache"), [("bf16", "auto"), ("int8", "auto"), ("int4", "int8")])
@pytest.mark.parametrize("name", ["t5", "bart"])
def test_in_encoder_decoders(name: str, precision: str, cache: Any, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from tests.engine import test_sources

    pair: EncoderDecoder = test_sources.both(name, tmp_path)[1]
    some = unstopped(test_sources.requests(pair))  # else it is the machine's last digits that say when an answer ends
    check(lambda: SourceRung(pair, precision, cache), pair.config, some, blocks=9)


def test_nothing_else_in_the_tree_draws_tokens() -> None:
    package = Path(__file__).parents[2] / "athanor"
    drawing = ("multinomial(", "gumbel", ".generate(input_ids")
    found = [path for path in package.rglob("*.py") if any(word in path.read_text("utf-8") for word in drawing)]
    assert found == []
