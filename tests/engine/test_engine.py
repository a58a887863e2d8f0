"""One engine for many requests: what each says is its own, memory comes back, whatever happens to the others."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from athanor.base.errors import AthanorError, ModelError
from athanor.engine import native_rung
from athanor.engine.blocks import BlockPool
from athanor.engine.engine import Engine
from athanor.engine.handle import Handle, Stream
from athanor.engine.requests import Completion, Event, Request, gather
from athanor.engine.rung import Segment
from athanor.engine.sampling import Sampling
from athanor.engine.scheduler import Scheduler
from athanor.engine.text import StopText
from athanor.models.decoder import Decoder
from athanor.tokenizer import Tokenizer
from tests.engine.conftest import RUNGS, random_model

STOPS = frozenset(range(0, 380, 150))


@pytest.fixture(scope="module")
def long_model() -> Decoder:
    return random_model(5, max_seq_len=400)


def requests(n: int, longest: int = 120, seed: int = 0) -> list[Request]:
    """Mixed prompts and settings; some share a long beginning."""
    rng = np.random.default_rng(seed)
    shared = rng.integers(0, 384, 60).tolist()
    made = []
    for i in range(n):
        own = rng.integers(0, 384, int(rng.integers(1, longest))).tolist()
        sampling = Sampling(
            temperature=float(rng.choice([0.0, 0.7, 1.3])),
            top_k=int(rng.choice([0, 20])),
            repetition_penalty=float(rng.choice([1.0, 1.2])),
            max_tokens=int(rng.integers(1, 100)),
            seed=i,
            n=int(rng.choice([1, 1, 1, 3])),
        )
        made.append(Request(shared + own if rng.random() < 0.5 else own, sampling, STOPS))
    return made


def tokens(completions: Sequence[Completion]) -> list[list[int]]:
    return [completion.tokens for completion in completions]


@pytest.fixture(scope="module")
def expected(long_model: Decoder) -> list[list[list[int]]]:
    """What each of requests(16) says alone."""
    return alone(long_model, requests(16))


def alone(model: Decoder, some: Sequence[Request]) -> list[list[list[int]]]:
    return [tokens(Engine.of(model).generate([request])[0]) for request in some]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"most_tokens": 7},
        {"most_running": 3},
        {"blocks": 27},
        {"blocks": 27, "most_tokens": 33},
    ],
    ids=["together", "chunked", "queued", "pre-empted", "pre-empted and chunked"],
)
def test_what_is_said_is_the_same_as_alone(
    long_model: Decoder, expected: list[list[list[int]]], settings: dict[str, Any]
) -> None:
    some = requests(16)
    engine = Engine.of(long_model, **settings)
    said = engine.generate(some)
    assert [tokens(each) for each in said] == expected
    assert engine.free_blocks == engine.blocks
    assert (engine.preemptions > 0) == ("blocks" in settings)
    again = engine.generate(some)  # every beginning is in the cache now
    assert [[c.logprobs for c in each] for each in again] == [[c.logprobs for c in each] for each in said]


def test_a_known_beginning_is_not_read_again(long_model: Decoder) -> None:
    engine = Engine.of(long_model)
    prompt, settings = list(range(300)), Sampling(max_tokens=4, seed=1)
    first = engine.submit(Request(prompt, settings))
    expected = tokens(first.result())
    second = engine.submit(Request(prompt, settings))
    assert tokens(second.result()) == expected
    assert (first.cached_tokens, second.cached_tokens) == (0, 288)
    other = engine.submit(Request(prompt, settings, salt="another tenant"))
    assert tokens(other.result()) == expected
    assert other.cached_tokens == 0


def test_requests_join_and_leave_at_any_step(long_model: Decoder, expected: list[list[list[int]]]) -> None:
    some = requests(16)
    engine = Engine.of(long_model, most_tokens=50)
    rng, events = np.random.default_rng(3), [list[Event]() for _ in some]
    handles = []
    for i, request in enumerate(some):
        handles.append(engine.submit(request, events[i].append))
        for _ in range(int(rng.integers(0, 6))):
            engine.step()
    for handle in handles:
        handle.wait()
    said = [tokens(gather(each, request.sampling.n)) for each, request in zip(events, some, strict=True)]
    assert said == expected


@pytest.mark.parametrize("steps", [0, 2, 20], ids=["queued", "reading", "writing"])
def test_cancelling_frees_everything_at_once(long_model: Decoder, steps: int) -> None:
    engine = Engine.of(long_model, most_tokens=40)
    free = engine.free_blocks
    handle = engine.submit(Request(list(range(200)), Sampling(max_tokens=150, seed=0, n=2)))
    for _ in range(steps):
        engine.step()
    assert (engine.free_blocks < free) == (steps > 0)
    handle.cancel()
    assert engine.free_blocks == free
    assert [c.finish_reason for c in handle.result()] == ["cancelled"] * 2
    assert not engine.step()


def test_a_thousand_requests_at_once(model: Decoder) -> None:
    engine = Engine.of(model)
    some = [Request([i % 384, 7], Sampling(seed=i, max_tokens=2)) for i in range(1000)]
    said = engine.generate(some)
    assert {len(c.tokens) for (c,) in said} == {2}
    assert [tokens(said[i]) for i in (0, 500, 999)] == alone(model, [some[i] for i in (0, 500, 999)])
    assert engine.free_blocks == engine.blocks


def test_asynchronous_use(long_model: Decoder, expected: list[list[list[int]]]) -> None:
    some = requests(16)
    engine = Engine.of(long_model)

    async def say(request: Request) -> list[list[int]]:
        events = [event async for event in engine.submit(request)]
        return tokens(gather(events, request.sampling.n))

    async def leave() -> None:
        async for _ in engine.submit(Request([1, 2, 3], Sampling(max_tokens=300, seed=0))):
            break

    async def all_of_them() -> list[Any]:
        return await asyncio.gather(*map(say, some), leave())

    said = asyncio.run(all_of_them())
    assert said[:-1] == expected
    gc.collect()
    assert engine.free_blocks == engine.blocks


def test_use_from_several_threads(long_model: Decoder, expected: list[list[list[int]]]) -> None:
    some = requests(16)
    engine = Engine.of(long_model)
    said: dict[int, list[list[int]]] = {}

    def say(number: int) -> None:
        said[number] = tokens(engine.submit(some[number]).result())

    threads = [threading.Thread(target=say, args=(i,)) for i in range(len(some))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [said[i] for i in range(len(some))] == expected


def test_what_is_written_goes_on_while_a_prompt_is_read(long_model: Decoder) -> None:
    engine = Engine.of(long_model, most_tokens=16)
    said: list[Event] = []
    engine.submit(Request([1, 2], Sampling(seed=1, max_tokens=60)), said.append)
    engine.step()
    reading = engine.submit(Request([3] * 300, Sampling(seed=2, max_tokens=2)))
    steps = 0
    while not reading.first_token_seconds > 0:
        before = len(said)
        engine.step()
        steps += 1
        assert len(said) == before + 1
    assert steps == -(-300 // 15)


def test_many_asynchronous_clients_need_few_threads(long_model: Decoder) -> None:
    """Eight whose prompts are long or who wait do not keep the others from their events."""
    engine = Engine.of(long_model, most_running=14, most_tokens=16)
    seen: list[int] = []

    async def say(number: int) -> int:
        prompt = [number] * (390 if number < 8 else 3)
        events = [event async for event in engine.submit(Request(prompt, Sampling(seed=number, max_tokens=6)))]
        seen.append(number)
        return len(events)

    async def all_of_them() -> list[int]:
        tasks = [asyncio.create_task(say(number)) for number in range(30)]
        given_up = asyncio.create_task(say(40))
        await asyncio.sleep(0.02)
        given_up.cancel()
        with pytest.raises(asyncio.CancelledError):
            await given_up
        return await asyncio.wait_for(asyncio.gather(*tasks), 120)

    assert asyncio.run(all_of_them()) == [6] * 30
    assert sorted(seen) == [*range(30)]
    assert engine.free_blocks == engine.blocks


@pytest.mark.parametrize("beams", [1, 2])
def test_the_last_event_is_not_lost_beside_another_thread(
    long_model: Decoder, beams: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = Stream.put

    def slow(self: Stream, event: Event) -> None:
        time.sleep(0.002)
        put(self, event)

    monkeypatch.setattr(Stream, "put", slow)
    engine = Engine.of(long_model)
    handle = engine.submit(Request([1, 2], Sampling(temperature=0, max_tokens=6, beams=beams)))
    steps = threading.Thread(target=lambda: [engine.step() for _ in range(40)])
    steps.start()
    events = list(handle)
    steps.join()
    assert len(events) == 6
    assert events[-1].finish_reason == "length"


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


def test_a_prompt_may_be_an_array(long_model: Decoder) -> None:
    engine, settings = Engine.of(long_model), Sampling(temperature=0, max_tokens=5)
    said = engine.generate([Request(np.arange(9), settings), Request(list(range(9)), settings)])  # type: ignore[arg-type]
    assert said[0] == said[1]


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


def test_new_weights_count_for_what_is_under_way(long_model: Decoder) -> None:
    other = random_model(6, max_seq_len=400)
    engine = Engine.of(long_model)
    request = Request(list(range(100)), Sampling(temperature=0, max_tokens=30))
    expected = alone(other, [request])[0]
    engine.generate([request])
    engine.update_weights(other)
    assert tokens(engine.generate([request])[0]) == expected, "nothing of the old weights is in the cache"
    handle = engine.submit(request)
    for _ in range(5):
        engine.step()
    engine.update_weights(long_model)
    said = handle.result()[0].tokens
    assert said[:4] == expected[0][:4]
    follow = replace(request, prompt=[*request.prompt, *said[:5]], sampling=Sampling(temperature=0, max_tokens=25))
    assert said[5:] == alone(long_model, [follow])[0][0]
    assert engine.free_blocks == engine.blocks


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


@pytest.mark.parametrize("most_tokens", [512, 13])
def test_logprobs_of_prompt_and_alternatives(long_model: Decoder, most_tokens: int) -> None:
    prompt = list(range(5, 60))
    engine = Engine.of(long_model, most_tokens=most_tokens)
    engine.generate([Request(prompt, Sampling(max_tokens=1, seed=0))])
    handle = engine.submit(Request(prompt, Sampling(max_tokens=6, seed=0, logprobs=3, prompt_logprobs=True)))
    said = handle.result()[0]
    with torch.no_grad():
        expected = torch.log_softmax(long_model(torch.tensor([prompt + said.tokens]))[0], -1)
    of_prompt = expected[: len(prompt) - 1].gather(1, torch.tensor(prompt[1:])[:, None])[:, 0]
    np.testing.assert_allclose(handle.prompt_logprobs, of_prompt.numpy(), atol=1e-4)
    top = expected[len(prompt) - 1 : -1].topk(3)
    assert [[t.token for t in each] for each in said.top] == top.indices.tolist()
    np.testing.assert_allclose([[t.logprob for t in each] for each in said.top], top.values.numpy(), atol=1e-4)


def test_the_prompt_is_told_once_whatever_happens(long_model: Decoder) -> None:
    prompt, sampling = list(range(5, 60)), Sampling(max_tokens=20, seed=0, prompt_logprobs=True)
    alone = Engine.of(long_model).submit(Request(prompt, sampling))
    alone.result()
    engine = Engine.of(long_model, most_running=1, most_tokens=13)  # two answers wait, and read it again
    handle = engine.submit(Request(prompt, replace(sampling, n=3)))
    for number, _ in enumerate(handle):
        if number == 5:
            engine.update_weights(long_model)
    assert len(handle.prompt_logprobs) == len(prompt) - 1
    assert handle.prompt_logprobs == alone.prompt_logprobs


def test_one_that_is_refused_lets_none_go_on(long_model: Decoder) -> None:
    engine = Engine.of(long_model)
    with pytest.raises(AthanorError, match="is empty"):
        engine.generate([Request([1, 2]), Request([])])
    assert not engine.step()


def test_stop_ids_and_least_length(long_model: Decoder) -> None:
    free = Engine.of(long_model).generate([Request([3], Sampling(temperature=0, max_tokens=30))])[0][0].tokens
    stop = Sampling(temperature=0, max_tokens=30, stop_ids=(free[4],))
    said = Engine.of(long_model).generate([Request([3], stop)])[0][0]
    assert (said.tokens, said.finish_reason) == (free[: free.index(free[4]) + 1], "stop")
    longer = Engine.of(long_model).generate([Request([3], replace(stop, min_tokens=20))])[0][0]
    assert len(longer.tokens) >= 20
    assert free[4] not in longer.tokens[:19]


def test_stop_strings_end_text_across_tokens(model: Decoder, tokenizer: Tokenizer) -> None:
    engine = Engine.of(model, tokenizer)
    settings = Sampling(temperature=1.0, top_p=1.0, seed=3, max_tokens=50, allowed_tokens=tuple(range(97, 123)))
    free = engine.generate([Request([1], settings)])[0][0]
    assert len(free.text) == 50
    stop = free.text[20:23]
    shown = ""
    for event in engine.submit(Request([1], replace(settings, stop=("never there", stop)))):
        shown += event.text
        assert not any(shown.endswith(stop[:n]) for n in (1, 2, 3)) or event.finish_reason or shown in free.text
    place = free.text.index(stop)
    assert shown == free.text[:place]
    assert event.finish_reason == "stop"
    late = engine.generate([Request([1], replace(settings, stop=(free.text[0],), min_tokens=5))])[0][0]
    assert late.text.startswith(free.text[:4])


class Letters:
    """One text a token."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = texts

    def push(self, token_id: int) -> str:
        return self.texts[token_id]

    def finish(self) -> str:
        return ""


@pytest.mark.parametrize(
    ("texts", "stop", "shown", "stops"),
    [
        (["a", "b", "STO", "P", "c"], ["STOP"], ["a", "b", "", ""], True),
        (["a", "ST", "x", "STOPPED"], ["STOP"], ["a", "", "STx", ""], True),
        (["ab", "ab", "aab"], ["abaab"], ["", "ab", ""], True),
        (["one ST"], ["STOP"], ["one ", "ST"], False),
        (["x|", "|y"], ["||", "|y"], ["x", ""], True),
    ],
)
def test_no_part_of_a_stop_string_is_shown(texts: list[str], stop: list[str], shown: list[str], stops: bool) -> None:
    text = StopText(Letters(texts), stop)
    given, stopped = [], False
    for token in range(len(texts)):
        part, stopped = text.push(token)
        given.append(part)
        if stopped:
            break
    if not stopped:
        given.append(text.finish()[0])
    assert (given, stopped) == (shown, stops)


@pytest.mark.parametrize(
    ("texts", "shown", "stops"),
    [
        (["ST", "OP"], ["", ""], True),
        (["STOP", "x"], ["STOP", "x"], False),
        (["aSTOPS", "TOP"], ["aSTOP", ""], True),
    ],
)
def test_a_stop_string_counts_where_it_ends(texts: list[str], shown: list[str], stops: bool) -> None:
    text = StopText(Letters(texts), ["STOP"])
    first, _ = text.push(0, watched=False)
    second, stopped = text.push(1)
    assert ([first, second], stopped) == (shown, stops)
