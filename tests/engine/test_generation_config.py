"""What a folder's `generation_config.json` says is done as transformers does it, or named as ignored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import athanor
from athanor.base.errors import ModelError
from athanor.engine.generation_config import defaults_of
from athanor.engine.sampling import Sampling
from tests.engine.test_sources import translator  # noqa: F401  a fixture

transformers = pytest.importorskip("transformers")


def written(folder: Path, **settings: Any) -> Path:
    (folder / "generation_config.json").write_text(json.dumps(settings))
    return folder


def test_what_has_a_setting_is_one(tmp_path: Path) -> None:
    found = written(
        tmp_path, temperature=0.5, typical_p=0.9, no_repeat_ngram_size=3, max_new_tokens=7, min_new_tokens=2,
        stop_strings=["x"], bad_words_ids=[[4], [5]], suppress_tokens=[3], max_length=99, top_k=None,
    )  # fmt: skip
    assert defaults_of(found) == Sampling(
        temperature=0.5, typical_p=0.9, no_repeat_ngram_size=3, max_tokens=7, min_tokens=2, stop=("x",),
        suppress_tokens=(3, 4, 5),
    )  # fmt: skip
    both = written(tmp_path, max_length=12, min_length=5, no_repeat_ngram_size=2)
    assert defaults_of(both, False, begun=2) == Sampling(0.0, max_tokens=10, min_tokens=3, no_repeat_ngram_size=2)
    assert defaults_of(written(tmp_path, max_length=12, max_new_tokens=3), begun=2).max_tokens == 3
    assert defaults_of(written(tmp_path, max_length=1, min_length=1), begun=2) == Sampling(max_tokens=1)


def test_what_has_none_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written(tmp_path, max_length=12, encoder_no_repeat_ngram_size=3, diversity_penalty=0.0, bad_words_ids=[[4, 5], [6]])
    assert defaults_of(tmp_path).suppress_tokens == (6,)
    said = capsys.readouterr().err
    assert "encoder_no_repeat_ngram_size, max_length, bad_words_ids of several tokens are ignored" in said
    assert "diversity" not in said
    defaults_of(written(tmp_path, max_length=12, forced_eos_token_id=2), begun=1)
    assert "forced_eos_token_id is ignored" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [{"no_repeat_ngram_size": -1}, {"suppress_tokens": 3, "bad_words_ids": [[4]]}])
def test_what_cannot_be_used_is_refused(wrong: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"generation_config\.json"):
        defaults_of(written(tmp_path, **wrong))


@torch.inference_mode()
@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_no_n_gram_twice_as_transformers_has_it(translator: Path, n: int, beams: int) -> None:  # noqa: F811
    before = (translator / "generation_config.json").read_text()
    settings = {**json.loads(before), "max_length": 24, "min_length": 9, "no_repeat_ngram_size": n, "num_beams": beams}
    written(translator, **settings)
    try:
        lm = athanor.load(translator)
        theirs = transformers.AutoModelForSeq2SeqLM.from_pretrained(translator)
    finally:
        (translator / "generation_config.json").write_text(before)
    never = list(range(lm.tokenizer.vocab_size, 96))
    for text in ("children read letters aloud", "the old furnace"):
        wanted = theirs.generate(torch.tensor([lm.text_prompt(text)]), suppress_tokens=never)[0].tolist()
        tokens = lm.generate(text).tokens
        assert [2, 5, *tokens] == wanted[: 2 + len(tokens)]
        assert len(wanted) <= 24
        said = [5, *tokens]
        grams = [tuple(said[i : i + n]) for i in range(len(said) - n + 1)]
        assert len({*grams}) == len(grams)
