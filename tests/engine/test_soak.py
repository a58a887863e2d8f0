"""Everything at once, in random order: arrivals, cancellations, abandoned handles, failing callbacks, weights that are
taken over again, short memory; of requests that are drawn, searched with beams, constrained and guessed, on both rungs,
in several formats and with a cache of 8 bits, about sources, and of several threads.

What survives says what it says alone, every block is back, and memory is flat.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from athanor.base.errors import AthanorError
from athanor.engine.engine import Engine
from athanor.engine.handle import Handle, Stream
from athanor.engine.native.compiling import compilers
from athanor.engine.native_rung import NativeRung
from athanor.engine.requests import Completion, Event, Request, gather
from athanor.engine.rung import Rung
from athanor.engine.scheduler import Answer
from athanor.engine.source_rung import SourceRung
from athanor.engine.speculation import Drafter, Lookup, Speculation
from athanor.engine.torch_rung import TorchRung
from athanor.models.decoder import Decoder
from athanor.models.encoder_decoder import EncoderDecoder
from athanor.tokenizer import Tokenizer
from tests.engine.asked import requests
from tests.engine.conftest import random_model
from tests.engine.test_constraint import constrained
from tests.engine.test_sources import both
from tests.engine.test_sources import requests as about_sources
from tests.engine.test_speculation import Oracle, always, said_by

RUNGS: dict[str, Callable[[Decoder], Rung]] = {
    "torch": TorchRung,
    "torch, 8 bits": lambda model: TorchRung(model, cache="int8"),
    "native": lambda model: NativeRung(model, "fp32"),
    "native, 8 bits": lambda model: NativeRung(model, "int8", cache="int8"),
    "native, 4 bits": lambda model: NativeRung(model, "int4", wide=True),
}
RUNS = [
    pytest.param(name, marks=pytest.mark.skipif("native" in name and not compilers(), reason="there is no C compiler"))
    for name in RUNGS
]
LIMITS = {"blocks": 31, "most_tokens": 64, "most_running": 32}
FLAT = 12 << 20  # bytes that what is resident may move by, of allocators alone


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> Decoder:
    return random_model(5, tokenizer.vocab_size, max_seq_len=400)


def some_of_all(tokenizer: Tokenizer) -> list[Request]:
    """Most are short, so that many come and go."""
    plain = requests(20, longest=40, seed=4)
    searched = [
        replace(one.sampling, temperature=0.0, top_k=0, beams=2 + i % 2, n=1 + i % 2) for i, one in enumerate(plain[:5])
    ]
    stopped = [replace(one.sampling, stop=("e", "炉"), logprobs=2) for one in plain[5:8]]
    varied = [replace(one.sampling, no_repeat_ngram_size=2, frequency_penalty=0.4) for one in plain[8:11]]
    told = [replace(one.sampling, prompt_logprobs=True) for one in plain[11:13]]
    kinds = [*searched, *stopped, *varied, *told]
    mixed = [replace(one, sampling=kind) for one, kind in zip(plain, kinds, strict=False)]
    long = [replace(one, stop_ids=frozenset[int]()) for one in plain[len(kinds) :]]  # these have to make room
    lengths = [40] * len(mixed) + [90] * len(long) + [40] * 9
    return [
        replace(one, sampling=replace(one.sampling, max_tokens=most, min_tokens=min(most, one.sampling.min_tokens)))
        for one, most in zip([*mixed, *long, *constrained(tokenizer)[:9]], lengths, strict=True)
    ]


def told(completions: Sequence[Completion]) -> list[tuple[object, ...]]:
    return [(c.tokens, c.logprobs, c.text, c.finish_reason, c.top) for c in completions]


def beginnings(some: Sequence[Request], engine: Engine) -> list[list[float]]:
    """The log-probabilities of the prompts, where they are asked for."""
    handles = [engine.submit(request) for request in some]
    for handle in handles:
        handle.wait()
    return [handle.prompt_logprobs for handle in handles]


class Failing:
    """A caller whose function breaks at its n-th event."""

    def __init__(self, n: int) -> None:
        self.left = n

    def __call__(self, event: Event) -> None:
        self.left -= 1
        if self.left < 0:
            raise RuntimeError("the caller's fault")


Survivors = dict[int, tuple[list[Completion], list[float]]]


def soak(
    engine: Engine, some: Sequence[Request], rng: np.random.Generator, model: Decoder | EncoderDecoder
) -> Survivors:
    """One round, in which each request meets some fate; what the survivors said, and of their prompts."""
    kept: dict[int, tuple[Handle, list[Event]]] = {}
    failing: list[Handle] = []
    waiting = rng.permutation(len(some)).tolist()
    while waiting or not all(handle.is_done for handle in [*(handle for handle, _ in kept.values()), *failing]):
        if waiting and rng.random() < 0.95:
            number = waiting.pop()
            request = some[number]
            fate = rng.choice(["kept", "cancelled", "abandoned", "fails"], p=[0.6, 0.1, 0.15, 0.15])
            if fate == "kept":
                events: list[Event] = []
                kept[number] = engine.submit(request, events.append), events
            elif fate == "abandoned":
                iterator = iter(engine.submit(request))
                if rng.random() < 0.5:
                    next(iterator)
                del iterator
            elif fate == "cancelled":
                handle = engine.submit(request)
                for _ in range(int(rng.integers(0, 5))):
                    engine.step()
                handle.cancel()
                while not handle.is_done:  # another thread may be at a step
                    engine.step()
            else:
                failing.append(engine.submit(request, Failing(int(rng.integers(0, 4)))))
        if rng.random() < 0.02:
            engine.update_weights(model)  # the same: what is under way is computed again
        engine.step()
    for handle in failing:
        with suppress(AthanorError):  # unless the answer was shorter than its caller's patience
            handle.wait()
    return {
        number: (gather(events, some[number].sampling.n), handle.prompt_logprobs)
        for number, (handle, events) in kept.items()
    }


def under_way() -> int:
    """Answers and streams that anything still holds."""
    gc.collect()
    return sum(type(each) in (Answer, Stream) for each in gc.get_objects())


def resident() -> int:
    """Bytes."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def rounds_of(
    rung: Callable[[], Rung],
    model: Decoder | EncoderDecoder,
    tokenizer: Tokenizer,
    some: Sequence[Request],
    seed: int,
    go_on: Callable[[int], bool],
    threads: int = 1,
) -> list[int]:
    """Checks round after round; what was resident after each. threads: that each do a round at the same time."""
    plain, lasting = Engine(rung(), model.config, tokenizer), under_way()
    alone = [said_by(plain, [request])[0] for request in some]
    prompts = [beginnings([request], plain)[0] for request in some]
    drafter: Drafter = Oracle(some, alone, 0.3) if isinstance(model, Decoder) else Lookup()
    engine = Engine(rung(), model.config, tokenizer, **LIMITS, drafter=drafter)
    rngs, memory, survived = np.random.default_rng(seed).spawn(threads), list[int](), set[int]()

    def one_round(rng: np.random.Generator) -> Survivors:
        return soak(engine, some, rng, model)

    while go_on(len(memory)) or (not engine.preemptions and len(memory) < 8):
        with ThreadPoolExecutor(threads) as pool:
            rounds = [*pool.map(one_round, rngs)] if threads > 1 else [one_round(rngs[0])]
        for number, (said, of_prompt) in (item for each in rounds for item in each.items()):
            assert told(said) == alone[number], f"{number}: {some[number]}"
            assert of_prompt == prompts[number]
            survived.add(number)
        assert engine.free_blocks == engine.blocks
        assert not any(engine._scheduler.pool._owners)
        assert under_way() == lasting
        memory.append(resident())
    assert engine.preemptions
    assert engine.speculation is not None
    assert engine.speculation.accepted
    assert len(survived) > len(some) // 2
    return memory


@pytest.mark.parametrize("name", RUNS)
def test_a_soak_leaves_nothing_behind(
    name: str, model: Decoder, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Speculation, "_choose", always)
    least = 2 if "native" in name else 1
    rounds_of(lambda: RUNGS[name](model), model, tokenizer, some_of_all(tokenizer), 11, lambda done: done < least)


@pytest.mark.parametrize("name", [RUNS[0], RUNS[2]])
def test_threads_that_soak_leave_nothing_behind(
    name: str, model: Decoder, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Speculation, "_choose", always)
    some = some_of_all(tokenizer)[::2]
    rounds_of(lambda: RUNGS[name](model), model, tokenizer, some, 13, lambda done: done < 1, threads=3)


@pytest.mark.parametrize("threads", [1, 3])
def test_answers_about_sources_that_soak_leave_nothing_behind(
    threads: int, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers")
    monkeypatch.setattr(Speculation, "_choose", always)
    pair = both("t5", tmp_path)[1]
    some = [
        replace(one, sampling=replace(one.sampling, n=1, temperature=0.0, beams=2)) if i % 4 == 0 else one
        for i, one in enumerate([*about_sources(pair), *about_sources(pair, seed=3), *about_sources(pair, seed=4)])
    ]
    rounds_of(lambda: SourceRung(pair), pair, tokenizer, some, 14, lambda done: done < 2, threads)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="what is resident is not told here")
@pytest.mark.parametrize("name", RUNS)
def test_a_long_soak_leaves_memory_flat(
    name: str, model: Decoder, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Speculation, "_choose", always)
    end = time.monotonic() + 40
    some = some_of_all(tokenizer)
    memory = rounds_of(
        lambda: RUNGS[name](model), model, tokenizer, some, 12, lambda done: done < 12 or time.monotonic() < end
    )
    third = len(memory) // 3
    assert max(memory[-third:]) - max(memory[:third]) < FLAT, memory
