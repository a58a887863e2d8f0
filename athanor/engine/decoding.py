"""Decoding: prompts in, events out, a token a step for all prompts at once.

Rows that have ended leave the batch a quarter at a time, since moving the cache costs more than they do; the rest go
on. Everything that samples (chat, rollouts, evaluation) runs on `decode`; it yields events as they happen, and
`complete` gathers them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from athanor.base.errors import AthanorError
from athanor.base.randomness import request_key
from athanor.engine.cache import KeyValueCache
from athanor.engine.sampling import Sampling, draw, penalise
from athanor.models.decoder import Decoder

_COMPACT_AT = 0.75  # share of rows still running at which the others are dropped


@dataclass(frozen=True)
class Event:
    """Request `request` said `token` with log-probability `logprob` (natural, of the unfiltered distribution at
    temperature 1).

    finish_reason: None, or on a request's last event "stop" (the token is a stop token) or "length".
    """

    request: int
    token: int
    logprob: float
    finish_reason: str | None


@dataclass
class Completion:
    """tokens: what was said, a stop token included. logprobs: one a token."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish_reason: str = "length"


@torch.inference_mode()
def decode(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    stop_ids: frozenset[int],
    keys: np.ndarray | None = None,
    samples: int = 1,
) -> Iterator[Event]:
    """Continues each prompt until a stop token, `sampling.max_tokens`, or the end of the model's context.

    samples: answers to each prompt, which is read once; request p · samples + i is the i-th to prompt p.
    keys: (requests,) uint64, by default made from the sampling's seed and the request's number.
    """
    limit = model.config.max_seq_len
    for number, prompt in enumerate(prompts):
        if not 0 < len(prompt) < limit:
            what = "is empty" if not prompt else f"has {len(prompt)} tokens"
            raise AthanorError(f"Prompt {number + 1} {what}.", f"This model takes from 1 to {limit - 1} tokens.")
    if any(token >= model.config.vocab_size for token in sampling.suppress_tokens):
        raise AthanorError(f"suppress_tokens names ids that this model of {model.config.vocab_size} does not have.")
    suppressed = torch.tensor(sampling.suppress_tokens, dtype=torch.int64)
    keys = request_keys(sampling.seed, len(prompts) * samples) if keys is None else keys
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    capacity = min(limit, int(lengths.max()) + sampling.max_tokens)
    cache, logits = _prefill(model, prompts, lengths, capacity)
    if samples > 1:
        rows = torch.arange(len(prompts)).repeat_interleave(samples)
        cache.select(rows)
        logits = logits[rows]
    requests = np.arange(len(prompts) * samples)  # of each row
    running = np.ones(len(requests), dtype=bool)
    seen = [list(prompts[i // samples]) for i in requests.tolist()] if sampling.repetition_penalty != 1 else []
    for step in range(sampling.max_tokens):
        wanted = penalise(logits, [seen[i] for i in requests], sampling.repetition_penalty) if seen else logits
        if len(suppressed):
            wanted = wanted.index_fill(1, suppressed, -torch.inf)
        tokens = draw(wanted, sampling, keys[requests], np.full(len(requests), step))
        logprobs = torch.log_softmax(logits, -1).gather(1, tokens[:, None]).squeeze(1).tolist()
        full = (cache.lengths + 1 >= limit).tolist()
        for row, (request, token) in enumerate(zip(requests.tolist(), tokens.tolist(), strict=True)):
            if not running[row]:
                continue
            last = step == sampling.max_tokens - 1 or full[row]
            reason = "stop" if token in stop_ids else "length" if last else None
            yield Event(request, token, logprobs[row], reason)
            running[row] = reason is None
            if seen:
                seen[request].append(token)
        if not running.any():
            return
        if running.mean() <= _COMPACT_AT:
            rows = torch.from_numpy(np.flatnonzero(running))
            cache.select(rows)
            requests, tokens, running = requests[running], tokens[rows], running[running]
        logits = _advance(model, cache, tokens, torch.from_numpy(running))


def _prefill(
    model: Decoder, prompts: Sequence[Sequence[int]], lengths: Tensor, capacity: int
) -> tuple[KeyValueCache, Tensor]:
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else next(model.parameters()).dtype
    cache = KeyValueCache(model.config, len(prompts), capacity, dtype)
    longest = int(lengths.max())
    padded = torch.zeros(len(prompts), longest, dtype=torch.int64)
    for row, prompt in zip(padded, prompts, strict=True):
        row[: len(prompt)] = torch.tensor(list(prompt))
    # What stands behind a short prompt is never attended to: the mask is causal, and decoding overwrites it.
    hidden = model.hidden(padded, cache=cache.prefill_layers(longest))
    cache.lengths = lengths.clone()
    return cache, model.logits(hidden[torch.arange(len(prompts)), lengths - 1]).float()


def _advance(model: Decoder, cache: KeyValueCache, tokens: Tensor, running: Tensor) -> Tensor:
    attended = int(cache.lengths.max()) + 1
    hidden = model.hidden(
        tokens[:, None],
        positions=cache.lengths[:, None],
        cache=cache.step_layers(attended),
        attended=attended,
    )
    cache.lengths += running  # a row that has ended stays where it is until it is dropped
    return model.logits(hidden[:, 0]).float()


def request_keys(seed: int | None, n: int) -> np.ndarray:
    if seed is None:
        return np.random.SeedSequence().generate_state(n, np.uint64)
    return np.array([request_key(seed, "request", i) for i in range(n)], dtype=np.uint64)


def complete(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    stop_ids: frozenset[int],
    keys: np.ndarray | None = None,
    samples: int = 1,
    batch: int = 512,
) -> list[Completion]:
    """All completions, in the order of the prompts, about `batch` at a time; `samples` and `keys` as in `decode`."""
    keys = request_keys(sampling.seed, len(prompts) * samples) if keys is None else keys
    completions = [Completion() for _ in range(len(prompts) * samples)]
    group = max(1, batch // samples)
    for start in range(0, len(prompts), group):
        some = prompts[start : start + group]
        first = start * samples
        for event in decode(model, some, sampling, stop_ids, keys[first : first + len(some) * samples], samples):
            completion = completions[first + event.request]
            completion.tokens.append(event.token)
            completion.logprobs.append(event.logprob)
            if event.finish_reason:
                completion.finish_reason = event.finish_reason
    return completions
