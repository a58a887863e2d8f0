"""Encoders that tell classes of texts, against transformers: its folders read here, ours read there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from athanor.base.errors import ModelError
from athanor.models.encoder import Encoder
from athanor.models.folder import load_model, save_model
from tests.models.family_rows import BOUND, PLAIN
from tests.models.test_families import ROBERTA, reference, tokens

_LABELS = {"0": "History", "1": "历史", "2": "Arts"}
_ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("BertForSequenceClassification", PLAIN),
    "roberta": ("RobertaForSequenceClassification", ROBERTA),
    "xlm-roberta": ("XLMRobertaForSequenceClassification", ROBERTA),
    "electra": ("ElectraForSequenceClassification", {**PLAIN, "embedding_size": 20}),
}


def logits(model: Any, text: Tensor) -> Tensor:
    assert isinstance(model, Encoder)
    return model.classify(model.encode(text))


@pytest.mark.parametrize("name", _ROWS)
@torch.no_grad()
def test_classes_are_told_as_in_transformers(name: str, tmp_path: Path) -> None:
    architecture, settings = _ROWS[name]
    theirs = reference(architecture, {**settings, "id2label": _LABELS})
    theirs.save_pretrained(tmp_path / "theirs")
    ours, text = load_model(tmp_path / "theirs"), tokens() + 3
    assert isinstance(ours, Encoder)
    assert ours.config.classifier is not None
    assert ours.config.classifier.labels == tuple(_LABELS.values())
    wanted = theirs(text).logits
    assert (logits(ours, text) - wanted).abs().max() <= BOUND * wanted.abs().max()
    save_model(ours, tmp_path / "ours")
    again = type(theirs).from_pretrained(tmp_path / "ours").eval()
    assert again.config.id2label == {int(number): label for number, label in _LABELS.items()}
    torch.testing.assert_close(again(text).logits, wanted, rtol=1e-5, atol=1e-6)


def test_labels_that_number_nothing_are_refused(tmp_path: Path) -> None:
    reference("BertForSequenceClassification", PLAIN).save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    for wrong in ({"1": "a", "2": "b"}, "a", {"0": "a", "1": "a"}):
        (tmp_path / "config.json").write_text(json.dumps({**settings, "id2label": wrong}))
        with pytest.raises(ModelError, match=r"id2label|label"):
            load_model(tmp_path)


def test_a_classifier_without_its_matrix_is_refused(tmp_path: Path) -> None:
    reference("BertModel", PLAIN).save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(
        json.dumps({**settings, "architectures": ["BertForSequenceClassification"], "id2label": _LABELS})
    )
    with pytest.raises(ModelError, match="lacks the weight classifier"):
        load_model(tmp_path)
