"""`athanor.load_classifier`: an encoder that tells of which class a text is, and its tokenizer, as one object."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from athanor.base.errors import ModelError
from athanor.engine.embedder import TextReader, longest_read
from athanor.engine.locate import find_model
from athanor.models.encoder import Encoder
from athanor.models.folder import load_model
from athanor.tokenizer.folder import from_folder

_MADE = "`athanor run bert --set classify=topic` makes one, in runs/NAME/classify."


class Classifier(TextReader):
    """Texts as probabilities of the classes that `labels` names."""

    @property
    def labels(self) -> tuple[str, ...]:
        classifier = self.model.config.classifier
        return classifier.labels if classifier else ()

    def probabilities(self, texts: Sequence[str]) -> np.ndarray:
        """(texts, labels) float32, each row of sum one. Raises what `read` raises."""
        return self.read(texts, len(self.labels), self._probabilities, "Classifying")

    def _probabilities(self, tokens: Tensor, mask: Tensor) -> Tensor:
        return self.model.classify(self.model.encode(tokens, mask)).float().softmax(-1)


def load_classifier(name: str | Path, *, dtype: torch.dtype | None = None) -> Classifier:
    """Loads what `athanor run` fine-tuned to tell classes, or a folder like BertForSequenceClassification's.

    Raises ModelError or TokenizerError when a file is missing, corrupt, or of a kind that is not read.
    """
    folder = find_model(name)
    model = load_model(folder, dtype)
    if not isinstance(model, Encoder) or model.config.classifier is None:
        raise ModelError(f"{folder} holds no classifier of texts.", _MADE)
    if len(model.config.classifier.labels) < 2:
        raise ModelError(f"{folder} gives one number a text, which is no class.", _MADE)
    return Classifier(model, from_folder(folder), longest_read(folder, model))
