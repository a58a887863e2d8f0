"""Every decoder family in the engine says greedily what it says in transformers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import athanor.models as models
from athanor.engine.engine import Engine
from athanor.engine.requests import Request
from athanor.engine.sampling import Sampling
from athanor.models.decoder import Decoder
from tests.models.family_rows import DECODERS
from tests.models.test_families import reference

pytest.importorskip("transformers")
# Frequencies that depend on the length of a text are here those of the whole context, as in vLLM and llama.cpp.
SAME = [name for name in DECODERS if not {"dynamic", "longrope"} & set(str(DECODERS[name]).replace("'", " ").split())]


@torch.inference_mode()
@pytest.mark.parametrize("name", SAME)
def test_greedy_answers_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    theirs, rng = reference(*DECODERS[name]), np.random.default_rng(0)
    theirs.save_pretrained(tmp_path)
    ours = models.load(tmp_path)
    assert isinstance(ours, Decoder)
    prompts = [rng.integers(3, 95, n).tolist() for n in (5, 33, 1)]
    said = Engine.of(ours).generate([Request(prompt, Sampling(temperature=0, max_tokens=20)) for prompt in prompts])
    for prompt, (completion,) in zip(prompts, said, strict=True):
        wanted = theirs.generate(
            torch.tensor([prompt]), max_new_tokens=20, do_sample=False, eos_token_id=None, pad_token_id=0
        )[0]
        assert completion.tokens == wanted.tolist()[len(prompt) :]
