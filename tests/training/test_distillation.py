"""Distillation against the divergence of whole logits, and who gets a gradient."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import pytest
import torch
import torch.nn.functional as F

import athanor.training.objectives.cross_entropy as cross_entropy
from athanor.base.errors import ModelError
from athanor.models.build import build
from athanor.models.config import HeadConfig
from athanor.training.batches import IGNORED
from athanor.training.objectives import Distillation, next_token
from tests.training.test_experts import batches
from tests.training.texts import decoder_config


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_chunks_give_value_and_gradient_of_the_whole(
    direction: Literal["forward", "reverse"], temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cross_entropy, "_CHUNK", 50)
    teacher, batch = build(decoder_config(), 1), batches().next()
    gradients, values = [], []
    for chunked in (True, False):
        student = build(replace(decoder_config(), head=HeadConfig(scale=2.0)), 2)
        if chunked:
            objective = Distillation(teacher, direction=direction, temperature=temperature, weight=0.7)
            total = objective(student, batch).sum
        else:
            labelled = batch.targets != IGNORED
            logits = [
                model(batch.tokens, positions=batch.positions, document_ids=batch.document_ids)[labelled] / temperature
                for model in (student, teacher)
            ]
            ours, theirs = (one.log_softmax(-1) for one in logits)
            of = (ours, theirs) if direction == "forward" else (theirs, ours)
            kl = F.kl_div(*of, reduction="sum", log_target=True)
            text = F.cross_entropy(logits[0] * temperature, batch.targets[labelled], reduction="sum")
            total = 0.7 * temperature**2 * kl + 0.3 * text
        total.backward()
        values.append(float(total))
        gradients.append([p.grad for p in student.parameters()])
    assert values[0] == pytest.approx(values[1], rel=1e-4)
    for got, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-3, rtol=1e-3)
    assert all(p.grad is None for p in teacher.parameters())
    assert not teacher.training


def test_a_student_comes_near_its_teacher() -> None:
    teacher, student, source = build(decoder_config(), 1), build(decoder_config(), 2), batches()
    for model, objective, steps in ((teacher, next_token, 40), (student, Distillation(teacher), 40)):
        model.requires_grad_(True)
        optimizer, found = torch.optim.AdamW(model.parameters(), lr=0.01), []
        for _ in range(steps):
            loss = objective(model, source.next())
            (loss.sum / loss.count).backward()
            optimizer.step()
            optimizer.zero_grad()
            found.append(float(loss.sum.detach()) / loss.count)
    assert found[-1] < 0.3 * found[0]


def test_what_cannot_be_distilled_is_refused() -> None:
    teacher = build(decoder_config(), 1)
    with pytest.raises(ModelError, match="has 512 tokens, the student 64"):
        Distillation(teacher)(build(replace(decoder_config(), vocab_size=64), 1), batches().next())
    with pytest.raises(ModelError, match="temperature 0"):
        Distillation(teacher, temperature=0.0)
