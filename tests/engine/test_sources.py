"""Encoder–decoders in the engine: greedy answers are those of transformers, and the same bits in any company."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import athanor.models as models
from athanor.base.errors import AthanorError
from athanor.engine.engine import Engine
from athanor.engine.requests import Request
from athanor.engine.sampling import Sampling
from athanor.models.encoder_decoder import EncoderDecoder
from tests.models.family_rows import PAIRS
from tests.models.test_families import reference

transformers = pytest.importorskip("transformers")
NO_STOP: frozenset[int] = frozenset()


def both(name: str, folder: Path) -> tuple[Any, EncoderDecoder]:
    architecture, settings = PAIRS[name]
    theirs = reference(architecture, settings)
    theirs.save_pretrained(folder)
    ours = models.load(folder)
    assert isinstance(ours, EncoderDecoder)
    return theirs, ours


def sources(model: EncoderDecoder, lengths: tuple[int, ...] = (5, 30, 1, 17)) -> list[list[int]]:
    rng = np.random.default_rng(1)
    return [rng.integers(3, 95, n).tolist() for n in lengths if n <= model.config.encoder.max_seq_len]


@torch.inference_mode()
@pytest.mark.parametrize("name", PAIRS)
def test_greedy_answers_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    theirs, ours = both(name, tmp_path)
    start, n = ours.config.start_id, min(20, ours.config.decoder.max_seq_len - 2)
    layers = theirs.config.to_dict()  # transformers makes T5's cache with as many layers as the encoder has
    shallow = layers.get("num_decoder_layers", 0) > layers.get("num_layers", 0)
    forced = 5 if name.startswith("m2m") else None
    never = theirs.config.pad_token_id  # in transformers it has no position, where the model says it itself
    settings = Sampling(temperature=0, max_tokens=n, suppress_tokens=(never,))
    prompt = [start] if forced is None else [start, forced]
    asked = [Request(prompt, settings, NO_STOP, source=source) for source in sources(ours)]
    said = Engine.of(ours).generate(asked)
    for request, (completion,) in zip(asked, said, strict=True):
        wanted = theirs.generate(
            torch.tensor([request.source]), max_new_tokens=n + len(prompt) - 1, do_sample=False, num_beams=1,
            eos_token_id=None, forced_eos_token_id=None, forced_bos_token_id=forced, decoder_start_token_id=start,
            use_cache=not shallow, suppress_tokens=[never],
        )[0]  # fmt: skip
        assert completion.tokens == wanted.tolist()[len(prompt) : len(prompt) + n]


@pytest.fixture(scope="module", params=["t5", "bart", "switch, full experts"])
def model(request: Any, tmp_path_factory: pytest.TempPathFactory) -> EncoderDecoder:
    return both(request.param, tmp_path_factory.mktemp("model"))[1]


def requests(model: EncoderDecoder) -> list[Request]:
    rng = np.random.default_rng(2)
    lengths = tuple(rng.integers(1, 40, 15).tolist())
    some = sources(model, lengths)
    some.append(some[0])
    return [
        Request(
            [model.config.start_id], Sampling(1.0, seed=i, max_tokens=38, n=1 + i % 3), frozenset({2}), source=source
        )
        for i, source in enumerate(some)
    ]


def test_what_is_said_is_the_same_as_alone(model: EncoderDecoder) -> None:
    some = requests(model)
    alone = [Engine.of(model).generate([request])[0] for request in some]
    for settings in ({}, {"most_running": 3}, {"blocks": 9}):
        engine = Engine.of(model, **settings)
        for _ in range(2):
            said = engine.generate(some)
            assert [[c.logprobs for c in each] for each in said] == [[c.logprobs for c in each] for each in alone]
        assert engine.free_blocks == engine.blocks
        assert (engine.preemptions > 0) == ("blocks" in settings)


def test_log_probabilities_are_those_of_the_whole_pass(model: EncoderDecoder) -> None:
    (request,) = requests(model)[1:2]
    handle = Engine.of(model).submit(request)
    completion = handle.result()[0]
    target = torch.tensor([[*request.prompt, *completion.tokens[:-1]]])
    whole = models.new(_roomy(model), 0)
    whole.load_state_dict(model.state_dict())
    with torch.no_grad():
        expected = torch.log_softmax(whole(torch.tensor([request.source]), target)[0], -1)
    wanted = expected.gather(1, torch.tensor(completion.tokens)[:, None])[:, 0]
    np.testing.assert_allclose(completion.logprobs, wanted.numpy(), atol=1e-4)


def _roomy(model: EncoderDecoder) -> Any:
    """Experts of the decoder that take any number of tokens: the whole target is one pass here."""
    from athanor.engine.source_rung import _without_capacity

    return replace(model.config, decoder=_without_capacity(model.config.decoder))


def test_sources_are_read_once_and_forgotten(model: EncoderDecoder, monkeypatch: pytest.MonkeyPatch) -> None:
    import gc
    import weakref

    engine, read = Engine.of(model), []
    plain = engine.rung.encode  # type: ignore[attr-defined]

    def encode(tokens: list[int]) -> Any:
        found = plain(tokens)
        read.append(weakref.ref(found))
        return found

    monkeypatch.setattr(engine.rung, "encode", encode)
    handle = engine.submit(replace(requests(model)[2], stop_ids=NO_STOP))
    assert len(handle.result()) == 3
    assert len(read) == 1
    gc.collect()
    assert read[0]() is None


def test_what_cannot_be_read_is_refused(model: EncoderDecoder) -> None:
    engine, start = Engine.of(model), [model.config.start_id]
    with pytest.raises(AthanorError, match="The source is empty"):
        engine.submit(Request(start))
    with pytest.raises(AthanorError, match="The source has id 96"):
        engine.submit(Request(start, source=[96]))
    with pytest.raises(AthanorError, match="The source has 600 tokens"):
        engine.submit(Request(start, source=[3] * 600))


def test_new_weights_count_for_sources_too(model: EncoderDecoder) -> None:
    engine, request = Engine.of(model), requests(model)[0]
    before = engine.generate([request])
    handle = engine.submit(request)
    engine.step()
    other = models.new(model.config, 1)
    engine.update_weights(other)  # type: ignore[arg-type]
    handle.result()
    assert engine.generate([request]) == Engine.of(other).generate([request]) != before  # type: ignore[arg-type]
