"""What the engine draws, counted: each setting against its definition by transformers' processors or plain numpy.

Two tokens of thousands of answers to one prompt, from both rungs; chi-square at 1 in 10,000, seeds fixed. Each count is
also held against what would be drawn without the setting, which it has to refute.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from athanor.engine.engine import Engine
from athanor.engine.native.compiling import compilers
from athanor.engine.native_rung import NativeRung
from athanor.engine.requests import Request
from athanor.engine.rung import Rung
from athanor.engine.sampling import Sampling
from athanor.engine.torch_rung import TorchRung
from tests.engine.conftest import random_model

transformers = pytest.importorskip("transformers")
VOCABULARY, PROMPT, STOPS, DRAWS = 12, [3, 7, 3, 10], frozenset({11}), 2048
SETTINGS: dict[str, dict[str, Any]] = {
    "cold": {"temperature": 0.6},
    "hot": {"temperature": 1.7},
    "top_k": {"top_k": 4},
    "top_p": {"top_p": 0.6},
    "min_p": {"min_p": 0.3},
    "typical_p": {"typical_p": 0.5},
    "repetition_penalty": {"repetition_penalty": 1.8},
    "repetition wanted": {"repetition_penalty": 0.5},
    "presence_penalty": {"presence_penalty": 1.5},
    "presence wanted": {"presence_penalty": -1.0},
    "frequency_penalty": {"frequency_penalty": 1.5},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 2},
    "no token twice": {"no_repeat_ngram_size": 1},
    "logit_bias": {"logit_bias": ((3, 1.5), (5, -2.0), (11, 0.5))},
    "suppress_tokens": {"suppress_tokens": (1, 8, 10)},
    "allowed_tokens": {"allowed_tokens": (0, 4, 7, 9, 11)},
    "min_tokens": {"min_tokens": 2, "logit_bias": ((11, 3.0),)},
    "all": {
        "temperature": 1.3, "top_k": 9, "top_p": 0.95, "min_p": 0.04, "typical_p": 0.9, "repetition_penalty": 1.2,
        "presence_penalty": 0.3, "frequency_penalty": 0.4, "logit_bias": ((2, 1.0),), "suppress_tokens": (6,),
        "no_repeat_ngram_size": 2,
    },
}  # fmt: skip
RUNGS = ["torch", *(["native"] if compilers() else [])]
MODEL = random_model(4, vocab_size=VOCABULARY)


def defined(logits: Tensor, sampling: Sampling, said: Sequence[int]) -> np.ndarray:
    """(vocabulary,): the probabilities after `PROMPT` and what was said, as the definitions have them."""
    from transformers.generation import logits_process as theirs

    seen = torch.tensor([[*PROMPT, *said]])
    scores = theirs.RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty)(seen, logits[None].double())
    for token, count in Counter(said).items():
        scores[0, token] -= sampling.presence_penalty + count * sampling.frequency_penalty
    if sampling.logit_bias:
        biases = {(token,): float(bias) for token, bias in sampling.logit_bias}
        scores = theirs.SequenceBiasLogitsProcessor(biases)(seen, scores.float()).double()
    banned = [i for i in range(VOCABULARY) if sampling.allowed_tokens and i not in sampling.allowed_tokens]
    banned += [*sampling.suppress_tokens, *(STOPS if len(said) < sampling.min_tokens else ())]
    if sampling.no_repeat_ngram_size:
        scores = theirs.NoRepeatNGramLogitsProcessor(sampling.no_repeat_ngram_size)(seen, scores)
    if banned:
        scores = theirs.SuppressTokensLogitsProcessor(banned)(seen, scores)
    scores = theirs.TemperatureLogitsWarper(sampling.temperature)(seen, scores)
    if sampling.top_k:
        scores = theirs.TopKLogitsWarper(sampling.top_k)(seen, scores)
    if sampling.top_p < 1:
        scores = theirs.TopPLogitsWarper(sampling.top_p)(seen, scores)
    if sampling.min_p:
        scores = theirs.MinPLogitsWarper(sampling.min_p)(seen, scores)
    if sampling.typical_p < 1:
        scores = theirs.TypicalLogitsWarper(sampling.typical_p)(seen, scores)
    return torch.softmax(scores[0], -1).numpy()


@torch.no_grad()
def expected(sampling: Sampling) -> np.ndarray:
    """(vocabulary, vocabulary): how often each pair; what stops at once stands on the diagonal."""
    first = defined(MODEL(torch.tensor([PROMPT]))[0, -1], sampling, [])
    second = MODEL(torch.tensor([[*PROMPT, i] for i in range(VOCABULARY)]))[:, -1]
    after = [np.eye(VOCABULARY)[i] if i in STOPS else defined(second[i], sampling, [i]) for i in range(VOCABULARY)]
    return np.asarray(DRAWS * first[:, None] * np.stack(after))


def chance(observed: np.ndarray, wanted: np.ndarray) -> float:
    """Of a chi-square statistic as large (Wilson and Hilferty 1931); cells that expect less than 5 are one."""
    if observed[wanted == 0].sum():
        return 0.0
    large = wanted >= 5
    seen, hoped = (np.append(cells[large], cells[~large].sum()) for cells in (observed, wanted))
    seen, hoped = seen[hoped > 0], hoped[hoped > 0]
    degrees = len(seen) - 1
    statistic = ((seen - hoped) ** 2 / hoped).sum()
    normal = ((statistic / degrees) ** (1 / 3) - (1 - 2 / (9 * degrees))) / math.sqrt(2 / (9 * degrees))
    return math.erfc(normal / math.sqrt(2)) / 2


@pytest.fixture(scope="module", params=RUNGS)
def engine(request: Any) -> Engine:
    rung: Rung = TorchRung(MODEL) if request.param == "torch" else NativeRung(MODEL, "fp32")
    return Engine(rung, MODEL.config, most_running=1024, most_tokens=2048)


@pytest.mark.parametrize("name", SETTINGS)
def test_what_is_drawn_follows_the_definition(engine: Engine, name: str) -> None:
    plain = {"temperature": 1.0, "top_p": 1.0}
    sampling = Sampling(**{**plain, **SETTINGS[name]}, n=DRAWS, max_tokens=2, seed=len(name))
    counted = np.zeros((VOCABULARY, VOCABULARY))
    for completion in engine.generate([Request(PROMPT, sampling, STOPS)])[0]:
        counted[completion.tokens[0], completion.tokens[-1]] += 1
    assert counted.sum() == DRAWS
    assert chance(counted, expected(sampling)) > 1e-4
    assert chance(counted, expected(Sampling(**plain))) < 1e-6  # type: ignore[arg-type]
