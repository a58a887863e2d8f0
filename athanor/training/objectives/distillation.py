"""A student learns the distribution of a teacher's next tokens (Hinton et al. 2015), in chunks: neither network's
logits ever stand as a whole.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from athanor.base.errors import ModelError
from athanor.models.decoder import Decoder
from athanor.training.batches import IGNORED, Batch, rows_at
from athanor.training.objectives.cross_entropy import head_cross_entropy, in_chunks
from athanor.training.objectives.loss import Loss

Direction = Literal["forward", "reverse"]


class Distillation:
    """The objective weight · T² · KL + (1 − weight) · cross-entropy with the text.

    direction: "forward" is KL(teacher ‖ student), which covers all that the teacher may say; "reverse" is
    KL(student ‖ teacher), which keeps to what it says most (Gu et al. 2023). temperature T: both distributions are of
    logits / T. The teacher is set to inference, its weights are frozen, and it goes to the device of the batches.
    """

    def __init__(
        self, teacher: Decoder, *, direction: Direction = "forward", temperature: float = 1.0, weight: float = 1.0
    ) -> None:
        if direction not in ("forward", "reverse"):
            raise ModelError(f"The direction of distillation {direction!r} is not known.", "forward or reverse.")
        if not temperature > 0 or not 0 <= weight <= 1:
            raise ModelError(
                f"Distillation with temperature {temperature} and weight {weight} is impossible.",
                "The temperature is above 0, the weight from 0 to 1.",
            )
        self.teacher = teacher.eval().requires_grad_(False)
        self.direction, self.temperature, self.weight = direction, temperature, weight

    def __call__(self, model: Decoder, batch: Batch) -> Loss:
        if model.config.vocab_size != self.teacher.config.vocab_size:
            raise ModelError(
                f"The teacher has {self.teacher.config.vocab_size} tokens, the student {model.config.vocab_size}.",
                "Both must share one vocabulary.",
            )
        if next(self.teacher.parameters()).device != batch.tokens.device:
            self.teacher.to(batch.tokens.device)
        labelled = batch.targets != IGNORED
        targets = batch.targets[labelled]
        hidden = model.hidden(batch.tokens, positions=batch.positions, document_ids=batch.document_ids)
        states = rows_at(hidden, labelled)
        with torch.no_grad():
            known = self.teacher.hidden(batch.tokens, positions=batch.positions, document_ids=batch.document_ids)
        known = known[labelled]

        def divergence(own: Tensor, others: Tensor) -> Tensor:
            student = (model.logits(own).float() / self.temperature).log_softmax(-1)
            with torch.no_grad():
                teacher = (self.teacher.logits(others).float() / self.temperature).log_softmax(-1)
            p, q = (teacher, student) if self.direction == "forward" else (student, teacher)
            return (p.exp() * (p - q)).sum()

        far = in_chunks(divergence, states, known)
        total = self.weight * self.temperature**2 * far
        if self.weight < 1:
            text = head_cross_entropy(model.head, model.embedding, states, targets)
            total = total + (1 - self.weight) * text
        return Loss(total, len(targets), {"kl": float(far.detach())})
