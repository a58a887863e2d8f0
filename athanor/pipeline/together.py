"""What pre-training and fine-tuning learn from, and how processes other than the first come to train along.

The first process carries out the recipe. For a stage that is trained together it tells the others a `Task`: names of
folders on the file system that all share, the plan and the seed. From these every process makes the same model and the
same stream of batches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from athanor.alignment.messages import Conversation, read_conversations
from athanor.base.errors import RecipeError
from athanor.base.files import read_json
from athanor.base.progress import progress
from athanor.base.randomness import subseed
from athanor.base.run import damaged
from athanor.corpus.shards import Shards
from athanor.corpus.stream_cache import TextStream
from athanor.corpus.streams import StreamIndex
from athanor.evaluation.bits_per_byte import bits_per_byte, document_nats, grouped_bits_per_byte, sample_held_out
from athanor.models.build import build
from athanor.models.decoder import Decoder
from athanor.models.folder import load_decoder
from athanor.models.ngrams import LONGEST, NGrams
from athanor.models.precision import autocast
from athanor.pipeline.objective_parts import objective_parts
from athanor.pipeline.plans import PretrainPlan, SupervisedPlan, TrainingPlan
from athanor.pipeline.recipe import TeacherRecipe
from athanor.tokenizer import Tokenizer
from athanor.tokenizer.chat import training_example
from athanor.training.batches import DocumentPieces, MaskedSequences, PackedBatches
from athanor.training.growth import GrowingBatches
from athanor.training.loop import LoopConfig, Trainer
from athanor.training.objectives import next_token
from athanor.training.parallel import Group
from athanor.training.pretraining import Learnt
from athanor.training.schedules import Schedule
from athanor.training.soft_targets import SoftBatches
from athanor.training.streaming import StreamedBatches

STREAM = "streamed.json"
"""In a stage of shards that has no training text of its own: where that is."""
_PREVIEW_TOKENS = 8192  # held-out ones, scored while training


@dataclass(frozen=True)
class Task:
    """One stage's training. folder: the stage's. tokenizer: that stage's folder. origin: the folder of the stage with
    the shards, or with the model that fine-tuning begins from. teacher: of one that distils.
    """

    stage: str
    plan: SupervisedPlan
    folder: Path
    tokenizer: Path
    origin: Path
    identity: str
    seed: int
    sharded: bool
    teacher: TeacherRecipe | None = None

    def to_message(self) -> dict[str, Any]:
        places = {name: str(getattr(self, name)) for name in ("folder", "tokenizer", "origin")}
        teacher = self.teacher and self.teacher.model_dump(mode="json")
        return vars(self) | places | {"plan": self.plan.model_dump(mode="json"), "teacher": teacher}

    @classmethod
    def of_message(cls, message: Mapping[str, Any]) -> Task:
        kind = PretrainPlan if message["stage"] == "pretrain" else SupervisedPlan
        places = {name: Path(message[name]) for name in ("folder", "tokenizer", "origin")}
        teacher = message["teacher"] and TeacherRecipe.model_validate(message["teacher"])
        return cls(**{**message, **places, "plan": kind.model_validate(message["plan"]), "teacher": teacher})


def follow(group: Group) -> None:
    """Trains along with the first process until it has nothing more to train together."""
    while (message := group.hear()) is not None:
        _train_along(Task.of_message(message), group)


def _train_along(task: Task, group: Group) -> None:
    if not task.folder.is_dir():
        raise RecipeError(
            f"Process {group.rank} does not find {task.folder}, where the first process works.",
            "All machines must share the file system that the run lies on, under the same path.",
        )
    plan, tokenizer, what = task.plan, Tokenizer.load(task.tokenizer / "model"), Learnt(next_token)
    model: Any
    source: Any
    evaluate: Callable[[Any], Mapping[str, float]] | None
    if isinstance(plan, PretrainPlan) and plan.objective != "next_token":
        parts = objective_parts(plan, task.origin, tokenizer, task.seed, task.teacher, group)
        model, source, evaluate, what = parts.model, parts.source, parts.preview, parts.learnt
    elif isinstance(plan, PretrainPlan):
        model = build(plan.model, task.seed)
        source = pretraining_batches(plan, open_text(task.origin), task.seed)
        give_memory(model, source)
        evaluate = preview_bits_per_byte(task.origin, plan, task.seed)
    else:
        model = load_decoder(task.origin / "model")
        source, _ = conversation_batches(task.folder / "conversations", tokenizer, plan, task.seed)
        evaluate = held_out_loss(task.folder / "conversations", tokenizer, plan)
    trainer = Trainer(
        model,
        what.loss,
        source,
        loop_config(plan),
        task.folder,
        remaining=lambda: 0.0,  # the first process's clock decides
        evaluate=evaluate,
        after_step=what.after_step,
        identity=task.identity,
        group=group,
        sharded=task.sharded,
    )
    trainer.run(task.stage)
    trainer.whole_model()


def loop_config(plan: TrainingPlan, spike_deviations: float = LoopConfig.spike_deviations) -> LoopConfig:
    return LoopConfig(
        steps=plan.steps,
        micro_rows=plan.micro_rows,
        optimizer=plan.optimizer,
        schedule=Schedule(plan.warmup, plan.final, plan.schedule),
        decay_share=plan.decay_share,
        clip=plan.clip,
        precision=plan.precision,
        checkpoint_every=plan.checkpoint_every,
        evaluate_every=plan.evaluate_every,
        retention=plan.keep,
        spike_deviations=spike_deviations,
        turns=plan.turns,
        average=plan.average,
        recompute=plan.recompute,
        compile=plan.compile,
    )


def open_text(shards: Path) -> Shards | TextStream:
    """The training text of a stage of shards: all of it there, or an address to stream it from."""
    if not (shards / STREAM).exists():
        return Shards.open(shards / "train")
    found = read_json(shards / STREAM)
    try:
        index = StreamIndex.of_json(found["index"], str(shards / STREAM))
        return TextStream(str(found["address"]), index, int(found["cache_bytes"]))
    except (KeyError, TypeError, ValueError):
        raise damaged(shards / STREAM) from None


def pretraining_batches(
    plan: PretrainPlan, text: Shards | TextStream, seed: int
) -> PackedBatches | GrowingBatches | SoftBatches:
    """The stream of batches that a pre-training plan learns from, from its beginning."""
    batches, remembered = text_batches(plan, text, seed), plan.model.embedding.ngrams
    if not (plan.ngram_targets or remembered) or isinstance(text, TextStream):
        return batches
    with progress("Counting n-grams"):
        ngrams = NGrams.count(text.tokens, text.index.vocab_size, remembered or LONGEST)
    return SoftBatches(batches, ngrams, teach=plan.ngram_targets, remember=bool(remembered))


def give_memory(model: Decoder, source: object) -> None:
    """Lets a model that looks n-grams up have those of the text that it is about to learn."""
    if model.embedding.memory is not None and isinstance(source, SoftBatches):
        model.embedding.memory.table = source.ngrams.pruned()


def text_batches(plan: PretrainPlan, text: Shards | TextStream, seed: int) -> PackedBatches | GrowingBatches:
    """The text that a pre-training plan reads, batch by batch."""
    eot, seed = text.index.end_of_text_id, subseed(seed, "pretrain")
    if isinstance(text, TextStream):
        batches: PackedBatches = StreamedBatches(text, plan.rows, plan.length, seed, pad_id=eot)
    else:
        pieces = DocumentPieces(text.tokens, text.offsets, plan.length, eot)
        batches = PackedBatches(pieces, plan.rows, plan.length, seed, pad_id=eot)
    if plan.rows_growth is None and plan.length_growth is None:
        return batches
    return GrowingBatches(batches, plan.expected_tokens, plan.rows_growth, plan.length_growth)


def preview_bits_per_byte(shards: Path, plan: PretrainPlan, seed: int) -> Callable[[Decoder], dict[str, float]]:
    """Bits per byte on a little of the held-out text."""
    preview = sample_held_out(Shards.open(shards / "heldout"), _PREVIEW_TOKENS, seed)

    def evaluate(model: Decoder) -> dict[str, float]:
        nats = document_nats(model, preview, plan.length, plan.precision)
        groups = {
            **grouped_bits_per_byte({"model": nats}, preview, preview.languages),
            **grouped_bits_per_byte({"model": nats}, preview, preview.sources),
        }
        parts = {f"bits_per_byte/{group}": values["model"] for group, values in groups.items()}
        return {"bits_per_byte": bits_per_byte(nats, preview), **parts}

    return evaluate


def conversation_batches(
    conversations: Path, tokenizer: Tokenizer, plan: SupervisedPlan, seed: int
) -> tuple[PackedBatches, int]:
    """Packed training conversations, and how many are longer than a row and left out."""
    found, _ = read_conversations(conversations / "train.jsonl")
    if not found:
        raise damaged(conversations)
    sequences = _render(found, tokenizer, plan.length)
    if not sequences:
        raise RecipeError(f"No conversation fits into sft.length = {plan.length} tokens.", "Make it larger.")
    seed = subseed(seed, "sft")
    batches = PackedBatches(MaskedSequences(sequences), plan.rows, plan.length, seed, pad_id=tokenizer.pad_id)
    return batches, len(found) - len(sequences)


def _render(found: Sequence[Conversation], tokenizer: Tokenizer, length: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Ids and loss masks of the conversations found that fit into `length` places."""
    sequences, longest = [], length * int(tokenizer.byte_lengths.max())
    with progress("Rendering conversations", total=len(found)) as bar:
        for conversation in found:
            bar.update(1)
            if sum(len(message["content"]) for message in conversation.messages) > longest:
                continue  # whatever its tokens are
            rendered = training_example(tokenizer, conversation.messages)
            if len(rendered.ids) - 1 <= length:
                sequences.append((np.array(rendered.ids, dtype=np.int32), np.array(rendered.mask)))
    return sequences


def held_out_loss(
    conversations: Path, tokenizer: Tokenizer, plan: TrainingPlan
) -> Callable[[Decoder], dict[str, float]] | None:
    """Nats a target over a few rows of held-out conversations."""
    found, _ = read_conversations(conversations / "heldout.jsonl")
    sequences = _render(found, tokenizer, plan.length)
    if not sequences:
        return None
    rows = _PREVIEW_TOKENS // plan.length + 1
    batch = PackedBatches(MaskedSequences(sequences), rows, plan.length, 0, pad_id=tokenizer.pad_id).next()

    @torch.no_grad()
    def evaluate(model: Decoder) -> dict[str, float]:
        device = next(model.parameters()).device
        with autocast(plan.precision, device):
            loss = next_token(model, batch.to(device))
        return {"heldout_loss": float(loss.sum) / loss.count}

    return evaluate
