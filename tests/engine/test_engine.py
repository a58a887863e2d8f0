"""One engine for many requests: what each says is its own, and memory comes back."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from athanor.engine.engine import Engine
from athanor.engine.handle import Stream
from athanor.engine.requests import Event, Request, gather
from athanor.engine.sampling import Sampling
from athanor.models.decoder import Decoder
from tests.engine.asked import alone, requests, tokens
from tests.engine.conftest import random_model


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


def test_a_prompt_may_be_an_array(long_model: Decoder) -> None:
    engine, settings = Engine.of(long_model), Sampling(temperature=0, max_tokens=5)
    said = engine.generate([Request(np.arange(9), settings), Request(list(range(9)), settings)])  # type: ignore[arg-type]
    assert said[0] == said[1]


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


def test_stop_ids_and_least_length(long_model: Decoder) -> None:
    free = Engine.of(long_model).generate([Request([3], Sampling(temperature=0, max_tokens=30))])[0][0].tokens
    stop = Sampling(temperature=0, max_tokens=30, stop_ids=(free[4],))
    said = Engine.of(long_model).generate([Request([3], stop)])[0][0]
    assert (said.tokens, said.finish_reason) == (free[: free.index(free[4]) + 1], "stop")
    longer = Engine.of(long_model).generate([Request([3], replace(stop, min_tokens=20))])[0][0]
    assert len(longer.tokens) >= 20
    assert free[4] not in longer.tokens[:19]
