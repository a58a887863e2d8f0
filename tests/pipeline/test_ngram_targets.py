"""When n-grams of the whole text are targets."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest

from athanor.base.errors import RecipeError
from athanor.pipeline.planning import _counts_ngrams
from athanor.pipeline.recipe import PretrainRecipe


def life(**pretrain: Any) -> Any:
    return SimpleNamespace(recipe=SimpleNamespace(pretrain=PretrainRecipe(**pretrain)))


@pytest.mark.parametrize(
    ("tokens", "unique", "seconds", "counted"),
    [
        (2e6, 9e6, 230, True),
        (2e6, 9e6, math.inf, True),
        (2e6, 9e6, 60, False),  # counting would take a quarter of the time
        (2e7, 9e6, 2300, True),
        (2e7, 1e6, 2300, False),  # read twice while they teach
        (2e6, math.inf, 230, False),  # streamed
        (2e6, 1e9, 1e5, False),
    ],
)
def test_counting_has_to_be_quick_and_the_text_new(tokens: float, unique: float, seconds: float, counted: bool) -> None:
    assert _counts_ngrams(life(), tokens, unique, seconds) == counted
    assert not _counts_ngrams(life(ngram_targets=False), tokens, unique, seconds)


def test_the_recipe_decides_where_it_can() -> None:
    assert _counts_ngrams(life(ngram_targets=True), 2e7, 9e6, 60)
    with pytest.raises(RecipeError, match="too large to be counted"):
        _counts_ngrams(life(ngram_targets=True), 2e6, 1e9, 60)
    with pytest.raises(RecipeError, match='not to "masked"'):
        _counts_ngrams(life(ngram_targets=True, objective="masked"), 2e6, 9e6, 60)
