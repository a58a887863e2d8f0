"""Bad input, and what fails within an engine: it is told, concerns what it must, and leaves nothing behind."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
import torch

from athanor.base.errors import AthanorError, ModelError
from athanor.engine import native_rung
from athanor.engine.blocks import BlockPool
from athanor.engine.engine import Engine
from athanor.engine.handle import Handle
from athanor.engine.requests import Event, Request, gather
from athanor.engine.rung import Segment
from athanor.engine.sampling import Sampling
from athanor.engine.scheduler import Scheduler
from athanor.models.decoder import Decoder
from tests.engine.asked import requests, tokens
from tests.engine.conftest import RUNGS, random_model


def test_a_forked_child_is_told_what_it_lacks(long_model: Decoder) -> None:
    engine = Engine.of(long_model)
    if not hasattr(engine.rung, "_process"):
        pytest.skip("torch's operations have no threads of their own")
    tokens(engine.generate([Request([1, 2], Sampling(max_tokens=3, seed=0))])[0])
    engine.rung._process += 1  # as in a child
    with pytest.raises(AthanorError, match="forked"):
        engine.generate([Request([1, 2], Sampling(max_tokens=3, seed=0))])


def test_weights_that_are_no_numbers_change_nothing(long_model: Decoder) -> None:
    engine, broken = Engine.of(long_model), random_model(6, max_seq_len=400)
    request = Request(list(range(40)), Sampling(temperature=0, max_tokens=9))
    expected = tokens(engine.generate([request])[0])
    with torch.no_grad():
        list(broken.parameters())[-1].fill_(torch.nan)
    with pytest.raises(ModelError, match="not numbers"):
        engine.update_weights(broken)
    assert tokens(engine.generate([request])[0]) == expected
    with pytest.raises(ModelError, match="another configuration"):
        engine.update_weights(random_model(6, max_seq_len=40))
    assert tokens(engine.generate([request])[0]) == expected


@pytest.mark.parametrize(
    "request_",
    [
        Request([1], stop_ids=frozenset({384})), Request([1], stop_ids=frozenset({-1})), Request([1], keys=[-1]),
        Request([1], keys=[2**64]), Request([1], stop_ids=frozenset({0.5})),  # type: ignore[arg-type]
        Request([1.5, 2]), Request([[1], [2, 3]]),  # type: ignore[list-item]
        Request([True]), Request(["1"]), Request([[1, 2]]), Request([2**70]),  # type: ignore[list-item]
        Request([1], source=np.array([3, 4])),  # type: ignore[arg-type]
    ],
)  # fmt: skip
def test_ids_and_keys_that_there_are_not_are_refused(long_model: Decoder, request_: Request) -> None:
    with pytest.raises(AthanorError, match=r"stop_ids|Keys|whole numbers|reads no source"):
        Engine.of(long_model).submit(request_)


def test_settings_that_leave_nothing_are_told(long_model: Decoder) -> None:
    engine = Engine.of(long_model)
    settings = Sampling(temperature=0, allowed_tokens=(5, 6), no_repeat_ngram_size=1, max_tokens=9)
    other = engine.submit(Request([7, 8], Sampling(seed=1, max_tokens=9)))
    with pytest.raises(AthanorError, match="the settings ban every token"):
        engine.submit(Request([1, 2], settings)).result()
    assert len(other.result()[0].tokens) == 9
    assert engine.free_blocks == engine.blocks


def test_a_rung_that_fails_fails_its_requests_and_no_other(
    long_model: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine.of(long_model)
    handle = engine.submit(Request([1, 2], Sampling(max_tokens=50, seed=0)))
    engine.step()
    with monkeypatch.context() as patch:
        patch.setattr(engine.rung, "forward", lambda _: 1 / 0)
        with pytest.raises(AthanorError, match="ZeroDivisionError"):
            handle.result()
    assert engine.free_blocks == engine.blocks
    assert tokens(engine.submit(Request([1, 2], Sampling(max_tokens=3, seed=0))).result())


@pytest.mark.parametrize(
    ("call", "error"),
    [("read_blocks", RuntimeError), ("read_blocks", MemoryError), ("write_blocks", RuntimeError)],
)
def test_one_for_which_there_is_no_memory_fails_alone(
    long_model: Decoder, expected: list[list[list[int]]], call: str, error: type[Exception],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Only what was to be put aside, or brought back."""
    engine, some, calls = Engine.of(long_model, blocks=27), requests(16), [0]
    plain = getattr(engine.rung, call)

    def failing(*given: Any) -> Any:
        calls[0] += 1
        if calls[0] == 1:
            raise error("not enough memory: you tried to allocate")
        return plain(*given)

    monkeypatch.setattr(engine.rung, call, failing)
    said = [list[Event]() for _ in some]
    handles = [engine.submit(request, events.append) for request, events in zip(some, said, strict=True)]
    failed = list[str]()
    for handle, request, events, wanted in zip(handles, some, said, expected, strict=True):
        try:
            handle.wait()
        except AthanorError as raised:
            failed.append(str(raised))
        else:
            assert tokens(gather(events, request.sampling.n)) == wanted
    assert len(failed) == 1
    assert "not enough memory" in failed[0]
    assert engine.free_blocks == engine.blocks


@pytest.mark.parametrize(
    ("owner", "place", "call"),
    [
        (Scheduler, "_contents", 1),
        (Scheduler, "advance", 9),
        (Scheduler, "_admit", 4),
        (Scheduler, "segment", 99),
        (Scheduler, "remove", 5),
        (BlockPool, "release", 1),
        (BlockPool, "release", 12),
        (BlockPool, "take", 9),
        (BlockPool, "enter", 9),
        (None, "copy_block", 2),  # while an answer takes over what another has
    ],
)
def test_an_interruption_ends_all_and_leaves_nothing(
    long_model: Decoder, expected: list[list[list[int]]], owner: type | None, place: str, call: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    engine, some = Engine.of(long_model, blocks=27), requests(16)
    where = engine.rung if owner is None else owner
    plain, left = getattr(where, place), [call]

    def interrupted(*given: Any) -> Any:
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        return plain(*given)

    searching = [Request([*range(40)], Sampling(temperature=0, beams=3, max_tokens=30))]
    with monkeypatch.context() as patch:
        patch.setattr(where, place, interrupted)
        handles = [engine.submit(request) for request in [*some, *searching]]
        with pytest.raises(KeyboardInterrupt):
            for handle in handles:
                handle.result()
    for handle in handles:
        with suppress(AthanorError):
            handle.wait()
    assert engine.free_blocks == engine.blocks
    assert not any(engine._scheduler.pool._owners)
    assert not engine.step()
    assert [tokens(each) for each in engine.generate(some)] == expected
    assert engine.free_blocks == engine.blocks
    assert not any(engine._scheduler.pool._owners)


def test_a_callback_that_asks_the_same_engine_is_refused(long_model: Decoder) -> None:
    engine, request = Engine.of(long_model), Request([1, 2], Sampling(max_tokens=9, seed=0))
    later = list[Handle]()
    for call in (
        lambda _: engine.step(),
        lambda _: engine.generate([request]),
        lambda _: engine.update_weights(long_model),
    ):
        with pytest.raises(AthanorError, match="A callback of the engine"):
            engine.submit(request, call).wait()
    engine.submit(request, lambda event: later.append(engine.submit(request)) if not later else None).wait()
    assert len(later[0].result()[0].tokens) == 9, "to submit is no asking"
    assert engine.free_blocks == engine.blocks


def test_neither_submitting_nor_cancelling_waits_for_a_step(
    long_model: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, request = Engine.of(long_model), Request([1, 2], Sampling(max_tokens=9, seed=0))
    expected = tokens(Engine.of(long_model).generate([request])[0])
    inside, go_on, forward = threading.Event(), threading.Event(), engine.rung.forward

    def slow(segments: Sequence[Any]) -> np.ndarray:
        inside.set()
        assert go_on.wait(60)
        return forward(segments)

    monkeypatch.setattr(engine.rung, "forward", slow)
    first = engine.submit(request)
    thread = threading.Thread(target=first.wait)
    thread.start()
    assert inside.wait(60)
    made = list[Handle]()

    def ask() -> None:
        made.extend([engine.submit(request), engine.submit(request)])
        made[1].cancel()

    asking = threading.Thread(target=ask)
    asking.start()
    asking.join(20)
    assert not asking.is_alive(), "while the step goes on"
    go_on.set()
    thread.join()
    second, third = made
    assert tokens(first.result()) == tokens(second.result()) == expected
    assert [c.finish_reason for c in third.result()] == ["cancelled"]
    assert engine.free_blocks == engine.blocks


@pytest.mark.parametrize("number", [np.nan, np.inf], ids=str)
@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0},
        {"seed": 1},
        {"seed": 1, "top_p": 0.5},
        {"repetition_penalty": 1.1},
        {"temperature": 0, "beams": 2},
    ],
    ids=["greedy", "drawn", "filtered", "adjusted", "searched"],
)
def test_logits_that_are_no_numbers_are_told(
    long_model: Decoder, settings: dict[str, Any], number: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine.of(long_model)
    other = engine.submit(Request([7, 8], Sampling(seed=1, max_tokens=9)))
    engine.step()
    handle, forward = engine.submit(Request([1, 2, 3], Sampling(max_tokens=9, **settings))), engine.rung.forward

    def broken(segments: Sequence[Segment]) -> np.ndarray:
        logits, row = forward(segments), 0
        for segment in segments:
            if segment.tokens[0] == 1:
                logits[row] = number
            row += segment.wanted
        return logits

    monkeypatch.setattr(engine.rung, "forward", broken)
    with pytest.raises(AthanorError, match="logits are not numbers"):
        handle.result()
    assert len(other.result()[0].tokens) == 9
    assert engine.free_blocks == engine.blocks


def test_a_prompts_log_probabilities_leave_no_large_buffer(
    long_model: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native_rung, "_KEPT_LOGITS", 256 * 4 * long_model.config.vocab_size)
    engine = Engine.of(long_model)
    if not hasattr(engine.rung, "_logits"):
        pytest.skip("torch's operations keep no logits")
    engine.submit(Request([*range(380)], Sampling(max_tokens=1, seed=0, prompt_logprobs=True))).result()
    assert len(engine.rung._logits) <= 256


def test_what_does_not_fit_is_refused_with_the_numbers(long_model: Decoder) -> None:
    engine = Engine.of(long_model, blocks=5)
    with pytest.raises(AthanorError, match="may take 90 tokens; the cache holds 80"):
        engine.submit(Request([1] * 50, Sampling(max_tokens=40)))
    with pytest.raises(AthanorError, match="stop_ids"):
        engine.submit(Request([1], Sampling(stop_ids=(384,))))
    with pytest.raises(AthanorError, match="2 keys were given for 1"):
        engine.submit(Request([1], keys=[1, 2]))
    with pytest.raises(AthanorError, match="tokenizer"):
        engine.submit(Request([1], Sampling(stop=("x",))))


@pytest.mark.parametrize("rung", RUNGS)
def test_answers_of_one_request_that_do_not_fit_together_wait_for_one_another(rung: Any, long_model: Decoder) -> None:
    request = Request([1] * 30, Sampling(max_tokens=40, n=8, temperature=1.0, seed=3))
    small, large = (Engine(rung(long_model), long_model.config, blocks=blocks) for blocks in (5, 64))
    said = small.generate([request])
    assert tokens(said[0]) == tokens(large.generate([request])[0])
    assert len({tuple(one.tokens) for one in said[0]}) == 8
    assert small.free_blocks == small.blocks == 5


def test_one_that_is_refused_lets_none_go_on(long_model: Decoder) -> None:
    engine = Engine.of(long_model)
    with pytest.raises(AthanorError, match="is empty"):
        engine.generate([Request([1, 2]), Request([])])
    assert not engine.step()
