"""The engine says what the whole forward pass, and transformers, would say, whatever else it does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from athanor.base.errors import AthanorError
from athanor.engine.engine import Engine
from athanor.engine.engine import complete as complete_on
from athanor.engine.requests import Completion, Event, Request, request_keys
from athanor.engine.sampling import AS_TRAINED, GREEDY, Sampling
from athanor.models.build import build
from athanor.models.config import AttentionConfig, LatentAttentionConfig, LayerConfig, MlpConfig, ModelConfig
from athanor.models.decoder import Decoder
from athanor.models.position_config import Alibi

GREEDY_20 = Sampling(temperature=0, max_tokens=20)
NO_STOP: frozenset[int] = frozenset()
PROMPTS = [[5, 17, 200, 3], [9], list(range(40, 71)), [300, 2, 300]]


def complete(
    model: Decoder, prompts: Sequence[Sequence[int]], sampling: Sampling, stop_ids: frozenset[int],
    keys: np.ndarray | None = None, samples: int = 1, **settings: Any,
) -> list[Completion]:  # fmt: skip
    return complete_on(Engine.of(model, **settings), prompts, replace(sampling, n=samples), stop_ids, keys)


def test_greedy_equals_transformers(model: Decoder, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from transformers import AutoModelForCausalLM

    peer = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ours = complete(model, PROMPTS, Sampling(temperature=0, max_tokens=20), NO_STOP)
    for prompt, completion in zip(PROMPTS, ours, strict=True):
        ids = torch.tensor([prompt])
        said = peer.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=20,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        assert completion.tokens == said[0, len(prompt) :].tolist()


@pytest.mark.parametrize("sampling", [Sampling(temperature=0, max_tokens=20), Sampling(seed=4, max_tokens=20)])
def test_logprobs_are_those_of_the_whole_forward_pass(model: Decoder, sampling: Sampling) -> None:
    for prompt, completion in zip(PROMPTS, complete(model, PROMPTS, sampling, NO_STOP), strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + completion.tokens]))[0]
        expected = torch.log_softmax(logits, -1)[len(prompt) - 1 : -1].gather(
            1, torch.tensor(completion.tokens)[:, None]
        )
        np.testing.assert_allclose(completion.logprobs, expected[:, 0].numpy(), atol=1e-4)


@pytest.mark.parametrize(
    "attention",
    [
        AttentionConfig(4, 2, 8, window=5),
        AttentionConfig(4, 4, 8, Alibi()),
        AttentionConfig(4, 4, 8, Alibi(scaled=True), window=5),
        LatentAttentionConfig(4, 16, 8, 4, 6),
    ],
    ids=["window", "ALiBi", "ALiBi and window", "latent"],
)
def test_other_attentions_say_what_the_whole_forward_pass_says(
    attention: AttentionConfig | LatentAttentionConfig,
) -> None:
    layers = (LayerConfig(attention, MlpConfig(48)), LayerConfig(replace(attention, window=None), MlpConfig(48)))
    model = build(ModelConfig(384, 32, 64, layers), seed=2)
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            parameter += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
    for prompt, completion in zip(PROMPTS, complete(model, PROMPTS, GREEDY_20, NO_STOP), strict=True):
        with torch.no_grad():
            logits = torch.log_softmax(model(torch.tensor([prompt + completion.tokens]))[0], -1)[len(prompt) - 1 : -1]
        assert completion.tokens == logits.argmax(-1).tolist()
        np.testing.assert_allclose(completion.logprobs, logits.max(-1).values.numpy(), atol=1e-4)


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=0.9, repetition_penalty=1.3)])
def test_a_prompt_says_the_same_alone_and_in_a_batch(model: Decoder, sampling: Sampling) -> None:
    stops = frozenset(range(0, 380, 13))  # so that rows leave the batch at different times
    keys = request_keys(8, len(PROMPTS))
    together = complete(model, PROMPTS, sampling, stops, keys)
    assert len({len(completion.tokens) for completion in together}) > 1
    for i, prompt in enumerate(PROMPTS):
        alone = complete(model, [prompt], sampling, stops, keys[i : i + 1])[0]
        assert alone.tokens == together[i].tokens
        assert alone.finish_reason == together[i].finish_reason


def test_any_number_at_a_time_says_the_same(model: Decoder) -> None:
    whole = complete(model, PROMPTS, Sampling(seed=1, max_tokens=8), NO_STOP, samples=3)
    parts = complete(model, PROMPTS, Sampling(seed=1, max_tokens=8), NO_STOP, samples=3, most_running=4, most_tokens=9)
    assert [c.tokens for c in whole] == [c.tokens for c in parts]


def test_suppressed_tokens_are_never_drawn(model: Decoder) -> None:
    free = complete(model, PROMPTS, Sampling(temperature=0.0, max_tokens=8), NO_STOP)
    said = tuple({token for completion in free for token in completion.tokens})
    for temperature in (0.0, 1.0):
        sampling = Sampling(temperature=temperature, seed=1, max_tokens=8, suppress_tokens=said)
        assert not {t for c in complete(model, PROMPTS, sampling, NO_STOP) for t in c.tokens} & set(said)
    with pytest.raises(AthanorError, match="suppress_tokens"):
        complete(model, PROMPTS, Sampling(suppress_tokens=(10**6,)), NO_STOP)


def test_samples_follow_their_prompt_and_differ(model: Decoder) -> None:
    sampling = Sampling(temperature=1.0, top_p=1.0, seed=2, max_tokens=10)
    keys = request_keys(2, 4 * len(PROMPTS))
    completions = complete(model, PROMPTS, sampling, NO_STOP, keys, samples=4)
    for i, prompt in enumerate(PROMPTS):
        group = completions[4 * i : 4 * i + 4]
        assert len({tuple(c.tokens) for c in group}) == 4
        again = complete(model, [prompt] * 4, sampling, NO_STOP, keys[4 * i : 4 * i + 4])
        assert [c.tokens for c in group] == [c.tokens for c in again]


def test_the_seed_decides(model: Decoder) -> None:
    def said(seed: int | None) -> list[list[int]]:
        settings = Sampling(temperature=1.0, seed=seed, max_tokens=12)
        return [completion.tokens for completion in complete(model, PROMPTS, settings, NO_STOP)]

    assert said(5) == said(5)
    assert said(5) != said(6)
    assert said(None) != said(None)


def test_a_stop_token_ends_a_request_and_is_its_last(model: Decoder) -> None:
    free = complete(model, [PROMPTS[0]], Sampling(temperature=0, max_tokens=20), NO_STOP)[0].tokens
    stop = free[7]
    stopped = complete(model, [PROMPTS[0]], Sampling(temperature=0, max_tokens=20), frozenset({stop}))[0]
    assert stopped.tokens == free[: free.index(stop) + 1]
    assert stopped.finish_reason == "stop"


def test_length_ends_a_request(model: Decoder) -> None:
    done = complete(model, PROMPTS, Sampling(temperature=0, max_tokens=5), NO_STOP)
    assert {(len(c.tokens), c.finish_reason) for c in done} == {(5, "length")}


def test_the_context_is_filled_and_not_exceeded(model: Decoder) -> None:
    limit = model.config.max_seq_len
    prompts = [[7] * (limit - 1), [7] * 10, [7]]
    done = complete(model, prompts, Sampling(temperature=0, max_tokens=1000), NO_STOP)
    assert [len(p) + len(c.tokens) for p, c in zip(prompts, done, strict=True)] == [limit] * 3
    assert {c.finish_reason for c in done} == {"length"}


@pytest.mark.parametrize(
    ("prompt", "what"),
    [([], "is empty"), ([1] * 64, "has 64 tokens"), ([1, 384], "has id 384"), ([-1, 3], "has id -1")],
)
def test_a_prompt_that_cannot_be_read_is_refused(model: Decoder, prompt: list[int], what: str) -> None:
    engine = Engine.of(model)
    with pytest.raises(AthanorError, match=f"The prompt {what}"):
        engine.submit(Request(prompt, GREEDY))
    assert not engine.step()


def test_events_come_a_step_at_a_time(model: Decoder) -> None:
    engine = Engine.of(model)
    events: list[tuple[int, Event]] = []
    settings = Sampling(seed=0, max_tokens=3)

    def take(number: int, event: Event) -> None:
        events.append((number, event))

    engine.answer([(Request([number + 1], settings), partial(take, number)) for number in range(2)])
    assert [number for number, _ in events] == [0, 1] * 3
    assert [event.finish_reason for _, event in events] == [None] * 4 + ["length"] * 2


def test_what_is_drawn_follows_the_model(model: Decoder) -> None:
    """4,000 first tokens against the forward pass, chi-square at 1 in 1,000 (seed fixed)."""
    with torch.no_grad():
        probabilities = torch.softmax(model(torch.tensor([PROMPTS[0]]))[0, -1].double(), -1).numpy()
    settings = Sampling(temperature=1.0, top_p=1.0, seed=11, max_tokens=1)
    drawn = [c.tokens[0] for c in complete(model, [PROMPTS[0]], settings, NO_STOP, samples=4000)]
    likely = np.argsort(probabilities)[::-1][:15]
    observed = np.array([drawn.count(token) for token in likely])
    observed = np.append(observed, 4000 - observed.sum())
    expected = 4000 * np.append(probabilities[likely], 1 - probabilities[likely].sum())
    statistic = ((observed - expected) ** 2 / expected).sum()
    assert statistic < 37.7  # chi-square, 15 degrees of freedom


def test_the_settings_of_rollouts_change_nothing_of_the_distribution() -> None:
    assert (AS_TRAINED.temperature, AS_TRAINED.top_k, AS_TRAINED.top_p, AS_TRAINED.min_p) == (1.0, 0, 1.0, 0.0)
    assert AS_TRAINED.repetition_penalty == 1.0
