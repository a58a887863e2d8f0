"""Errors keep their sentence and hint wherever they travel."""

from __future__ import annotations

import pickle

import pytest

from athanor.base.errors import AthanorError, DataError, ModelError, RecipeError, RunError, TokenizerError


def test_reads_as_one_text() -> None:
    assert str(AthanorError("x.json is broken.", "Remove it.")) == "x.json is broken. Remove it."
    assert str(AthanorError("x.json is broken.")) == "x.json is broken."


@pytest.mark.parametrize("kind", [AthanorError, DataError, ModelError, RecipeError, RunError, TokenizerError])
def test_survives_the_way_back_from_a_worker_process(kind: type[AthanorError]) -> None:
    error = pickle.loads(pickle.dumps(kind("It is wrong.", "Mend it.")))
    assert type(error) is kind
    assert (error.message, error.hint) == ("It is wrong.", "Mend it.")
    assert isinstance(error, AthanorError)
