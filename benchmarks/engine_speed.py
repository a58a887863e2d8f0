"""The engine as it is used: SmolLM2-135M-Instruct against transformers, many requests together against the rung
alone, a prefix that requests share, models of the size that `make run` makes, and the first rung against llama.cpp.

transformers writes greedily with its cache, in the faster of fp32 and bf16; it and the engine go by turns, and the
row's ratio is the median over them; so do they with an encoder–decoder of T5-small's shape in fp32, whose weights are
made up. The first rung (torch's operations, no C) computes the packaged model in fp32, bf16, int8 and int4; the best
one of each row is given. Models of runs are freshly initialised, with logits as sure as those of trained ones (about 3
nats), and draw at temperature 0.7 and top-p 0.95 over 8,192 tokens of vocabulary.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from _decoding import BLOCKS, against_llama_cpp, write
from _llama_cpp import STREAMED, STREAMS
from _rows import row

from athanor.base.machine import usable_cores
from athanor.engine.conversion import convert
from athanor.engine.engine import Engine
from athanor.engine.language_model import load
from athanor.engine.locate import find_model
from athanor.engine.requests import Request
from athanor.engine.rungs import WantedFormat, open_rung
from athanor.engine.sampling import Sampling
from athanor.engine.torch_rung import TorchRung
from athanor.models.build import build, count_parameters
from athanor.models.config import HeadConfig, standard_config
from athanor.models.folder import load_model
from athanor.models.gguf.load import load_gguf

ISSUE = "D"
MODEL, TURNS, WRITTEN, SHARED = "smollm2-135m-instruct", 5, 32, 1000
AGAINST_TRANSFORMERS, SHARE_OF_FIRST, SMALL = 15.0, 0.1, 1500.0
SPREAD = 3.5  # of 8,192 normal logits, which then hold about 3 nats
SIZES: tuple[tuple[int, int, WantedFormat], ...] = ((256, 4, "bf16"), (512, 5, "int8"))
FIRST_RUNG = {"read": 1.0, "write": 0.5}


def rows() -> Iterator[dict[str, Any]]:
    torch.set_num_threads(usable_cores())
    yield from against_transformers()
    yield whole_engine()
    yield shared_prefix()
    for d_model, n_layers, form in SIZES:
        yield small_model(d_model, n_layers, form)
    yield from encoder_decoder()
    yield from first_rung()


def against_transformers() -> Iterator[dict[str, Any]]:
    from transformers import AutoModelForCausalLM

    lm = load(MODEL, format="int4", speculate="off")
    prompt = lm.tokenizer.encode("The old furnace burns slowly while")
    sampling = Sampling(temperature=0, max_tokens=WRITTEN, min_tokens=WRITTEN)
    with tempfile.TemporaryDirectory() as folder:
        convert(MODEL, Path(folder) / "m", "hf")
        peers = {
            name: AutoModelForCausalLM.from_pretrained(Path(folder) / "m", dtype=dtype)
            for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16))
        }

    def ours() -> float:
        start = time.perf_counter()
        lm.engine.generate([Request(prompt, sampling)])
        return WRITTEN / (time.perf_counter() - start)

    def theirs(name: str) -> float:
        start = time.perf_counter()
        given = torch.tensor([prompt])
        peers[name].generate(
            given,
            attention_mask=torch.ones_like(given),
            max_new_tokens=WRITTEN,
            min_new_tokens=WRITTEN,
            do_sample=False,
        )
        return WRITTEN / (time.perf_counter() - start)

    best = max(peers, key=lambda name: max(theirs(name), theirs(name)))
    ours()
    turns = [(ours(), theirs(best)) for _ in range(TURNS)]
    ratio = median(mine / their for mine, their in turns)
    speed, peer = (median(speeds) for speeds in zip(*turns, strict=True))
    found = row(
        f"writing in int4, prompt of {len(prompt)} tokens included, against transformers ({best})",
        speed, "tokens/s", target=AGAINST_TRANSFORMERS, peer=peer,
    )  # fmt: skip
    yield {**found, "ratio": ratio, "met": ratio >= AGAINST_TRANSFORMERS}


def whole_engine() -> dict[str, Any]:
    """What scheduling and drawing cost: requests that are written together, against the rung's steps alone."""
    lm = load(MODEL, format="int4", speculate="off")
    rung = open_rung(lm.model, "int4", find_model(MODEL))  # type: ignore[arg-type]
    rung.allocate(STREAMS * -(-STREAMED // 16))
    sampling = Sampling(temperature=0.7, top_p=0.95, max_tokens=STREAMED, min_tokens=STREAMED, seed=1)
    asked = [Request([100 + number], sampling) for number in range(STREAMS)]

    def ours() -> float:
        start = time.perf_counter()
        lm.engine.generate(asked)
        return STREAMS * STREAMED / (time.perf_counter() - start)

    ours(), write(rung, STREAMS, STREAMED)
    turns = [(ours(), write(rung, STREAMS, STREAMED)) for _ in range(TURNS)]
    speed, alone = (median(speeds) for speeds in zip(*turns, strict=True))
    found = row(
        f"{STREAMS} requests together in int4, drawn, against the rung's steps alone", speed, "tokens/s", peer=alone
    )
    return {**found, "ratio": median(mine / bare for mine, bare in turns)}


def shared_prefix() -> dict[str, Any]:
    lm = load(MODEL, format="int4", speculate="off")

    def first_token(number: int, question: int) -> float:
        prompt = [100 + (7919 * (place + number)) % 20_000 for place in range(SHARED)] + [200 + question] * 8
        start = time.perf_counter()
        lm.engine.generate([Request(prompt, Sampling(temperature=0, max_tokens=1))])
        return time.perf_counter() - start

    first_token(-1, 0)
    turns = [(first_token(number, 0), first_token(number, 1)) for number in range(TURNS)]
    first, second = (median(times) for times in zip(*turns, strict=True))
    found = row(
        f"time to the first token, {SHARED:,} tokens shared with a request before, against that request's",
        second, "s", target=SHARE_OF_FIRST, peer=first, most=True,
    )  # fmt: skip
    ratio = median(later / before for before, later in turns)
    return {**found, "ratio": ratio, "met": ratio <= SHARE_OF_FIRST}


def small_model(d_model: int, n_layers: int, form: WantedFormat) -> dict[str, Any]:
    small = standard_config(8192, 1024, d_model=d_model, n_layers=n_layers)
    config = replace(small, head=HeadConfig(tied=False))  # a token's own embedding would answer with itself
    model = build(config, 0)
    with torch.inference_mode():
        model.norm.weight *= SPREAD / model(torch.arange(64)[None]).std()
    engine = Engine(open_rung(model, form), config)
    sampling = Sampling(temperature=0.7, top_p=0.95, max_tokens=256, min_tokens=256, seed=1)

    def write() -> float:
        start = time.perf_counter()
        (answers,) = engine.generate([Request([5, 6, 7, 8], sampling)])
        return len(answers[0].tokens) / (time.perf_counter() - start)

    write()
    speed = median(write() for _ in range(TURNS))
    size = f"{count_parameters(small) / 1e6:.1f} M parameters"
    return row(f"one stream by a model of {size} in {form}, drawing included", speed, "tokens/s", target=SMALL)


def encoder_decoder() -> Iterator[dict[str, Any]]:
    """Sources of 40 tokens, read and answered greedily, one and 16 at a time."""
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    shape = T5Config(
        vocab_size=32_128, d_model=512, d_kv=64, d_ff=2048, num_layers=6, num_heads=8, decoder_start_token_id=0
    )
    with tempfile.TemporaryDirectory() as folder:
        peer = T5ForConditionalGeneration(shape).eval()
        peer.save_pretrained(folder)
        engine = Engine.of(load_model(Path(folder)))  # type: ignore[arg-type]
    sources = torch.randint(5, 32_000, (16, 40))

    def ours(streams: int) -> float:
        sampling = Sampling(temperature=0, max_tokens=WRITTEN)
        start = time.perf_counter()
        engine.generate([Request([0], sampling, source=source) for source in sources[:streams].tolist()])
        return streams * WRITTEN / (time.perf_counter() - start)

    def theirs(streams: int) -> float:
        start = time.perf_counter()
        peer.generate(sources[:streams], max_new_tokens=WRITTEN, do_sample=False, eos_token_id=None)
        return streams * WRITTEN / (time.perf_counter() - start)

    for streams in (1, 16):
        ours(streams), theirs(streams)
        turns = [(ours(streams), theirs(streams)) for _ in range(TURNS)]
        speed, their = (median(speeds) for speeds in zip(*turns, strict=True))
        found = row(
            f"encoder–decoder of T5-small's shape, {streams} at a time, sources read, against transformers",
            speed, "tokens/s", target=1.0, peer=their,
        )  # fmt: skip
        ratio = median(mine / other for mine, other in turns)
        yield {**found, "ratio": ratio, "met": ratio >= 1}


def first_rung() -> Iterator[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "m.gguf"
        convert(MODEL, file, "gguf", "Q4_0")
        model = load_gguf(file)
        found = []
        for form in ("fp32", "bf16", "int8", "int4"):
            rung = TorchRung(model, form)
            rung.allocate(len(BLOCKS))
            found.append(list(against_llama_cpp(rung, file, FIRST_RUNG, f" on the first rung in {form}")))
        for alike in zip(*found, strict=True):
            yield max(alike, key=lambda one: one["ratio"] or one["value"])
