"""Texts with a label, on which a masked or denoising model is fine-tuned (Devlin et al. 2019; Raffel et al. 2020).

An encoder gets new matrices behind its first token's state, as in BERT; an encoder–decoder writes the label out, as in
T5. Texts are packed like those of pre-training and go through the same loop. Deviation: in T5's way, a class is the
label that the decoder finds likeliest (as in T0, Sanh et al. 2022), so that no answer is none of the labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from athanor.base.errors import DataError
from athanor.models.build import new
from athanor.models.config import ClassifierConfig, ModelConfig
from athanor.models.encoder import Encoder
from athanor.models.encoder_decoder import EncoderDecoder
from athanor.models.precision import autocast
from athanor.training.batches import IGNORED, Batch
from athanor.training.denoisers import SourceTargetBatch, source_target_batch
from athanor.training.drawn import Drawn, Examples, SpecialTokens, plain_batch
from athanor.training.objectives import Loss, denoising

_TOGETHER = 32  # texts at a time whose class is told


@dataclass(frozen=True)
class LabelledTexts:
    """texts: token ids, without control tokens. classes: of each, the number of its label."""

    texts: list[np.ndarray]
    classes: np.ndarray

    def __len__(self) -> int:
        return len(self.texts)


class FirstPlaces:
    """Texts between the tokens `classify` and `separate`, of at most `length` places; the class is the target of the
    first place.
    """

    def __init__(self, texts: LabelledTexts, special: SpecialTokens, length: int) -> None:
        self.labelled, self.special, self.most = texts, special, length - 2
        self.lengths = np.array([min(len(ids), self.most) + 2 for ids in texts.texts], dtype=np.int64)

    def draw(self, index: int, epoch: int) -> Drawn:
        ids = self.labelled.texts[index][: self.most]
        tokens = np.concatenate([[self.special.classify], ids, [self.special.separate]]).astype(np.int64)
        targets = np.full_like(tokens, IGNORED)
        targets[0] = self.labelled.classes[index]
        return {"tokens": tokens, "targets": targets}

    def collate(self, drawn: Sequence[Drawn], rows: Sequence[Sequence[int]], length: int) -> Batch:
        return plain_batch(drawn, rows, length, self.special.end)


class WrittenLabels:
    """Texts as sources, of at most `length` places, and their labels as targets. labels: token ids, a class each."""

    def __init__(self, texts: LabelledTexts, special: SpecialTokens, length: int, labels: list[np.ndarray]) -> None:
        self.labelled, self.special, self.most, self.labels = texts, special, length - 1, labels
        longest = max(len(ids) for ids in labels) + 1
        lengths = [max(min(len(ids), self.most) + 1, longest) for ids in texts.texts]  # of the longer side
        self.lengths = np.array(lengths, dtype=np.int64)

    def draw(self, index: int, epoch: int) -> Drawn:
        end = self.special.end
        source = np.append(self.labelled.texts[index][: self.most], end).astype(np.int64)
        target = np.append(self.labels[self.labelled.classes[index]], end).astype(np.int64)
        return {"source": source, "tokens": np.append(end, target[:-1]), "targets": target}

    def collate(self, drawn: Sequence[Drawn], rows: Sequence[Sequence[int]], length: int) -> SourceTargetBatch:
        return source_target_batch(drawn, rows, self.special.end)


def labelled_examples(
    model: nn.Module, texts: LabelledTexts, special: SpecialTokens, length: int, labels: list[np.ndarray]
) -> Examples:
    """What `model` is fine-tuned on. labels: token ids of each class's name. Raises DataError for a label that fills a
    row.
    """
    if not isinstance(model, EncoderDecoder):
        return FirstPlaces(texts, special, length)
    if (longest := max(len(ids) for ids in labels)) >= length:
        raise DataError(f"A label of {longest} tokens does not fit into rows of {length}.", "Give it a shorter name.")
    return WrittenLabels(texts, special, length, labels)


def with_classifier(model: Any, labels: Sequence[str], seed: int) -> Any:
    """The network that tells classes, from a pre-trained one: an encoder with new matrices in place of its heads, all
    else with the same weights; a copy of an encoder–decoder.
    """
    made = new(_classifier_config(model.config, labels), seed)
    learnt = model.state_dict()
    with torch.no_grad():
        for name, tensor in made.state_dict().items():
            if name in learnt:
                tensor.copy_(learnt[name])
    return made


def untrained_classifier(model: Any, labels: Sequence[str], seed: int) -> Any:
    """The same network from scratch."""
    return new(_classifier_config(model.config, labels), seed)


def _classifier_config(config: Any, labels: Sequence[str]) -> Any:
    if not isinstance(config, ModelConfig):
        return config
    classifier = ClassifierConfig(tuple(labels), "gelu" if config.family == "electra" else "tanh")
    return replace(config, head=None, next_sentence=False, pooler=True, classifier=classifier)


def classification(model: Any, batch: Any) -> Loss:
    """The cross-entropy of the class; of the label's tokens, where the model writes it."""
    if isinstance(model, EncoderDecoder):
        return denoising(model, batch)
    logits, classes = _class_logits(model, batch)
    right = (logits.detach().argmax(-1) == classes).sum()
    loss = F.cross_entropy(logits.float(), classes, reduction="sum")
    return Loss(loss, len(classes), {"accuracy": float(right)})


def _class_logits(model: Encoder, batch: Batch) -> tuple[Tensor, Tensor]:
    """Of the texts of a batch, (texts, labels), and their classes."""
    states = model.encode(batch.tokens, positions=batch.positions, document_ids=batch.document_ids)
    first = batch.targets != IGNORED
    return model.classify(states[first][:, None]), batch.targets[first]


@torch.no_grad()
def told_classes(model: Any, examples: Any, precision: str) -> np.ndarray:
    """(texts,) int64: the class that the model finds likeliest for each text of `labelled_examples`."""
    told, device = [], next(model.parameters()).device
    for start in range(0, len(examples.lengths), _TOGETHER):
        drawn = [examples.draw(i, 0) for i in range(start, min(start + _TOGETHER, len(examples.lengths)))]
        length = int(examples.lengths[start : start + _TOGETHER].max())
        batch = examples.collate(drawn, [[number] for number in range(len(drawn))], length)
        batch = batch.to(device)
        with autocast(precision, device):
            if isinstance(examples, WrittenLabels):
                logits = _written(model, batch, examples.labels)
            else:
                logits = _class_logits(model, batch)[0]
        told.append(logits.argmax(-1))
    return torch.cat(told).cpu().numpy()


def _written(model: EncoderDecoder, batch: SourceTargetBatch, labels: Sequence[np.ndarray]) -> Tensor:
    """The log-probability of each label, (texts, labels). batch: one text a row."""
    mask = (batch.source_document_ids >= 0).long()
    source = model.read(model.encode(batch.source, mask))
    found = []
    for ids in labels:
        written = torch.from_numpy(np.append(ids, model.config.start_id))  # it ends as it starts
        target = written.to(mask.device).expand(len(mask), -1)
        logits = model.decode(model.shifted(target), source, mask).float()
        found.append(-F.cross_entropy(logits.mT, target, reduction="none").sum(-1))
    return torch.stack(found, dim=-1)
