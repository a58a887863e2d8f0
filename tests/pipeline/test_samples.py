"""What a model says while it trains: the same prompts each time, in TensorBoard at every evaluation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from athanor.alignment.rollouts import answer_text
from athanor.engine.language_model import LanguageModel
from athanor.models.build import build
from athanor.models.config import standard_config
from athanor.pipeline.samples import COMPLETIONS, Write, answered, continued, held_conversations
from athanor.tokenizer import Tokenizer, train_tokenizer
from athanor.training.batches import DocumentPieces, PackedBatches
from athanor.training.loop import LoopConfig, Trainer
from athanor.training.objectives import next_token
from athanor.training.optimizers import OptimizerConfig
from athanor.training.schedules import Schedule
from tests.training.texts import shards


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer([f"The history of the city, page {n}. 却说曹操。" for n in range(50)], 512)


@pytest.mark.parametrize("make", [continued, answered])
def test_they_are_the_same_each_time_and_change_nothing(
    make: Callable[[Tokenizer, str, int], Write], tokenizer: Tokenizer
) -> None:
    model = build(standard_config(512, 256, d_model=64, n_layers=1), 0)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    write = make(tokenizer, "fp32", 1)
    said = write(model)
    assert said == write(model)
    assert list(said) == ["said/1", "said/2", "said/3", "said/4"]
    assert all(text.startswith("**") for text in said.values())
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())
    if make is continued:
        assert all(text.startswith(f"**{p}** ") for text, (_, p) in zip(said.values(), COMPLETIONS, strict=True))


def test_they_are_shown_at_every_evaluation(tmp_path: Path) -> None:
    tokens, offsets = shards()
    source = PackedBatches(DocumentPieces(tokens, offsets, 64, 0), 4, 64, 1, pad_id=0)
    calls: list[int] = []
    own = SimpleNamespace(trainer=None)

    def write(model: object) -> dict[str, str]:
        calls.append(own.trainer.outcome.steps)
        return {"said/1": f"step {calls[-1]}"}

    own.trainer = Trainer(
        build(standard_config(512, 64, d_model=64, n_layers=1), 0),
        next_token,
        source,
        LoopConfig(6, 4, OptimizerConfig(), Schedule(1), evaluate_every=2),
        tmp_path / "stage",
        evaluate=lambda model: {"heldout_loss": 1.0},
        write=write,
        tensorboard=tmp_path / "events",
    )
    own.trainer.run("test")
    assert calls == [2, 4, 6]
    events = EventAccumulator(str(tmp_path / "events"))
    events.Reload()
    assert [event.step for event in events.Tensors("said/1")] == [2, 4, 6]


def test_conversations_side_by_side_are_those_one_after_the_other(tokenizer: Tokenizer) -> None:
    model = LanguageModel(build(standard_config(512, 48, d_model=64, n_layers=1), 0), tokenizer)
    turns = [("Hello!", "Stone."), ("River?",), ("The history of the city, " * 9,)]
    how = {"max_tokens": 8, "temperature": 0.5, "seed": 3}
    held = held_conversations(model, tokenizer, turns, **how)
    assert held == [held_conversations(model, tokenizer, [one], **how)[0] for one in turns]
    assert [message["role"] for message in held[1]] == ["user", "assistant"]
    assert held[0][1]["content"] == answer_text(tokenizer, model.chat(held[0][:1], **how).tokens)
    assert held[2] == []  # it does not fit into the context
