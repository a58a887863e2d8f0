"""Fine-tuning on classes of texts: what a masked or denoising model has learnt is worth, against the same network from
scratch after equally many steps.

The classes stand in the documents' `meta`. Those that the corpus holds out are told apart, so that pre-training has not
read them either. The first of the fine-tuned models is kept.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from athanor.base.errors import RecipeError
from athanor.base.machine import usable_cores
from athanor.base.progress import say
from athanor.base.randomness import generator, subseed
from athanor.base.run import Stage
from athanor.corpus.build import iterate_documents
from athanor.corpus.document import Document
from athanor.evaluation.objectives import Score, compare
from athanor.models.folder import load_model
from athanor.pipeline.data_stages import load_tokenizer
from athanor.pipeline.life import Life, Work
from athanor.pipeline.objective_stage import save_with_tokenizer
from athanor.pipeline.plans import PretrainPlan, SupervisedPlan
from athanor.pipeline.recipe import ClassifyRecipe
from athanor.pipeline.together import loop_config
from athanor.pipeline.training_stages import lineage_of
from athanor.tokenizer import Tokenizer
from athanor.training.classification import (
    LabelledTexts,
    classification,
    labelled_examples,
    told_classes,
    untrained_classifier,
    with_classifier,
)
from athanor.training.drawn import DrawnBatches, SpecialTokens
from athanor.training.faults import Incidents
from athanor.training.loop import Outcome, Trainer

_ROWS = 8  # of a batch: about as many texts as BERT's 16
_EPOCHS = 3  # at most, as BERT
_LEAST_STEPS = 20
_MOST_CLASSES = 256


@dataclass(frozen=True)
class LabelledCorpus:
    """The labelled documents of a corpus; held-out ones only with labels that training has."""

    labels: tuple[str, ...]
    train: LabelledTexts
    held_out: LabelledTexts

    @classmethod
    def read(cls, corpus: Path, recipe: ClassifyRecipe, tokenizer: Tokenizer, seed: int) -> LabelledCorpus:
        """Raises RecipeError for examples that are too few to have classes."""
        train = list(_labelled(corpus, "train", recipe.label))
        chosen = [train[i] for i in generator(seed, "labelled").permutation(len(train))[: recipe.examples]]
        labels = tuple(sorted({label for _, label in chosen}))
        told = [(document, label) for document, label in _labelled(corpus, "heldout", recipe.label) if label in labels]
        if len(labels) < 2 or not told:
            raise RecipeError(
                f"classify.examples: among {len(chosen)} labelled documents are {len(labels)} classes, which "
                f"{len(told)} held-out documents have.",
                "Take more of them.",
            )

        def encoded(documents: list[tuple[Document, str]]) -> LabelledTexts:
            texts = tokenizer.encode_many([document.text for document, _ in documents], usable_cores())
            classes = np.array([labels.index(label) for _, label in documents])
            return LabelledTexts([ids.astype(np.int64) for ids in texts], classes)

        return cls(labels, encoded(chosen), encoded(told))


def _labelled(corpus: Path, split: Literal["train", "heldout"], key: str) -> Iterator[tuple[Document, str]]:
    """The documents that have a label, and it; each once, however often its source is read."""
    seen = set()
    for document in iterate_documents(corpus, split):
        label = document.meta.get(key)
        if label and document.id not in seen:
            seen.add(document.id)
            yield document, str(label)


def check_labels(life: Life, key: str) -> None:
    """Raises RecipeError where the corpus has no classes to learn, or none to be asked for."""
    folder = life.run.stages["corpus"].folder
    train = {label for _, label in _labelled(folder, "train", key)}
    held_out = {label for _, label in _labelled(folder, "heldout", key)}
    hint = (
        'The packaged wikipedia-summaries have a "topic"; lines of your own .jsonl files may have a "label" beside '
        "their text."
    )
    if len(train) < 2 or not train & held_out:
        raise RecipeError(
            f"classify.label: {len(train)} classes in the training documents have a {key!r}, and {len(held_out)} in "
            "those held out; two and one of them are needed.",
            hint,
        )
    if len(train) > _MOST_CLASSES:
        raise RecipeError(f"classify.label: {key!r} has {len(train)} classes; at most {_MOST_CLASSES} are told.", hint)


def classify_stage(life: Life, recipe: ClassifyRecipe, tokenizer: Stage, pretrain: Stage) -> Stage:
    corpus = life.run.stages["corpus"]

    def work(stage: Stage) -> Work:
        encoder, pretrained = load_tokenizer(tokenizer), PretrainPlan.of(pretrain)
        data = LabelledCorpus.read(corpus.folder, recipe, encoder, life.seed)
        stage.beat()
        plan = life.plan(stage, SupervisedPlan, lambda: _plan(life, recipe, pretrain, data))
        say(
            f"Classification: {len(data.labels)} classes, {len(data.train):,} labelled documents, {recipe.seeds} × "
            f"{plan.steps} steps from what was learnt and from scratch."
        )
        right: dict[str, list[np.ndarray]] = {"learnt": [], "scratch": []}
        outcomes = []
        for number in range(recipe.seeds):
            for start, answers in right.items():
                outcome, model, found = _train(life, stage, plan, pretrain, data, encoder, start, number)
                outcomes.append(outcome)
                answers.append(found == data.held_out.classes)
                if start == "learnt" and number == 0:
                    kept = model
        scores = _scores(recipe.label, data, {start: np.mean(answers, axis=0) for start, answers in right.items()})
        for score in scores:
            say(f"Held out, {score}.")
        metrics = {**_metrics(outcomes, data), "scores": [score.as_dict() for score in scores]}
        lineage = lineage_of(stage, "classifier", metrics)
        save_with_tokenizer(stage.folder / "model", kept, encoder, pretrained, lineage)
        for folder in stage.folder.glob("*/checkpoints"):
            shutil.rmtree(folder)
        return metrics, ["model"], {"incidents": asdict(sum((one.incidents for one in outcomes), Incidents()))}

    inputs = {"corpus": corpus.output_fingerprint, "base": pretrain.output_fingerprint}
    return life.perform("classify", {**recipe.model_dump(mode="json"), "seed": life.seed}, inputs, work)


def _plan(life: Life, recipe: ClassifyRecipe, pretrain: Stage, data: LabelledCorpus) -> SupervisedPlan:
    """Pre-training's plan with smaller batches, and as many steps as there is time for, or three epochs."""
    plan = PretrainPlan.of(pretrain)
    places = _ROWS * plan.length
    epoch = sum(min(len(ids) + 2, plan.length) for ids in data.train.texts) / places
    steps = recipe.steps or max(_LEAST_STEPS, round(_EPOCHS * epoch))
    if recipe.steps is None and life.recipe.budget_seconds is not None:
        seconds = life.classify_share * life.recipe.budget_seconds / (2 * recipe.seeds)
        rate = pretrain.metrics["places"] / max(pretrain.seconds, 1e-9) / life.group.size  # this one trains alone
        steps = min(steps, max(_LEAST_STEPS, int(seconds * rate / places)))
    fields = {name: getattr(plan, name) for name in SupervisedPlan.model_fields}
    changes = {
        "rows": _ROWS, "micro_rows": min(_ROWS, plan.micro_rows), "steps": steps, "seconds": None, "turns": (),
        "warmup": steps // 10, "schedule": "linear", "final": 0.0, "average": "none",
        "optimizer": replace(plan.optimizer, weight_decay=0.0, table_decay=0.0),
        "checkpoint_every": max(1, steps // 2), "evaluate_every": steps, "keep": type(plan.keep)(last=1),
    }  # fmt: skip
    return SupervisedPlan(**{**fields, **changes})


def _train(
    life: Life, stage: Stage, plan: SupervisedPlan, pretrain: Stage, data: LabelledCorpus, tokenizer: Tokenizer,
    start: str, number: int,
) -> tuple[Outcome, Any, np.ndarray]:  # fmt: skip
    """The outcome, the model, and the classes that it tells of the held-out documents."""
    special, seed = SpecialTokens.of(tokenizer), subseed(life.seed, "classify", str(number))
    labels = [np.array(tokenizer.encode(label)) for label in data.labels]
    make = with_classifier if start == "learnt" else untrained_classifier
    model = make(load_model(pretrain.folder / "model"), data.labels, seed)
    source = DrawnBatches(
        labelled_examples(model, data.train, special, plan.length, labels), plan.rows, plan.length, seed
    )
    name = f"{start}-{number}"
    trainer = Trainer(
        model, classification, source, loop_config(plan), stage.folder / name,
        beat=stage.beat, identity=f"{stage.fingerprint}/{name}", group=life.alone,
    )  # fmt: skip
    outcome = trainer.run(f"Fine-tuning, {'what was learnt' if start == 'learnt' else 'from scratch'}, {number + 1}")
    examples = labelled_examples(model, data.held_out, special, plan.length, labels)
    told = told_classes(model, examples, plan.precision)
    return outcome, trainer.whole_model(), told


def _scores(key: str, data: LabelledCorpus, right: Mapping[str, np.ndarray]) -> list[Score]:
    """Accuracies over held-out documents, means over the seeds; intervals over documents, paired."""
    commonest = np.bincount(data.train.classes).argmax() == data.held_out.classes
    ones, name = np.ones(len(data.held_out)), f"{key} among {len(data.labels)}"
    return [
        compare(f"{name}, {what}", right["learnt"], other, ones, "accuracy", lower_is_better=False)
        for what, other in (
            ("against the same network from scratch", right["scratch"]),
            ("against the commonest one", commonest.astype(np.float64)),
        )
    ]


def _metrics(outcomes: list[Outcome], data: LabelledCorpus) -> dict[str, Any]:
    return {
        "labels": list(data.labels),
        "examples": len(data.train),
        "held_out": len(data.held_out),
        "steps": outcomes[0].steps,
        "places": sum(outcome.places for outcome in outcomes),
        "skipped_steps": sum(outcome.skipped for outcome in outcomes),
        "spike_steps": sum(outcome.spikes for outcome in outcomes),
    }
