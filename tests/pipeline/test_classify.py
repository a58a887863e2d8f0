"""Fine-tuning on classes of texts: from what was learnt and from scratch, and the model that is kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import athanor
from athanor.base.errors import AthanorError, ModelError, RecipeError
from athanor.base.randomness import generator
from athanor.corpus.build import build_corpus
from athanor.pipeline import classify_stage
from athanor.pipeline.classify_stage import LabelledCorpus
from athanor.pipeline.job import live
from athanor.pipeline.plans import read_run_plan
from athanor.pipeline.recipe import ClassifyRecipe
from athanor.pipeline.recipe_files import load_recipe
from athanor.pipeline.summary import summary
from athanor.tokenizer import train_tokenizer
from tests.pipeline.conftest import _SIGNS, _WORDS, athanor_process
from tests.pipeline.test_objectives import _TINY, _measured_quickly  # noqa: F401, a fixture


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A recipe file; its texts are lines of words with one label and of signs with another, a few without."""
    random = generator(0, "tests", "labelled")
    lines = []
    for number in range(160):
        words = [_WORDS[int(i)] for i in random.integers(len(_WORDS), size=40)]
        signs = [_SIGNS[int(i)] for i in random.integers(len(_SIGNS), size=60)]
        text, label = (" ".join(words), "words") if number % 2 else ("".join(signs), 7)
        lines.append({"text": text} if number % 10 == 0 else {"text": text, "label": label})
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    path = tmp_path / "tiny.toml"
    path.write_text(_TINY.format(texts=texts, objective="masked_pairs"), encoding="utf-8")
    return path


def changes(objective: str) -> list[str]:
    return ["classify.label=label", "classify.steps=60", "classify.seeds=2", f"pretrain.objective={objective}"]


@pytest.mark.parametrize(
    "objective", ["masked_pairs", "replaced", "spans", pytest.param("ul2", marks=pytest.mark.slow)]
)
def test_what_was_learnt_is_fine_tuned_beside_the_same_network_from_scratch(
    objective: str, recipe: Path, tmp_path: Path
) -> None:
    root = tmp_path / "run"
    report = live(load_recipe(recipe, changes(objective)), root)
    assert report is not None
    scratch, commonest = (score for score in report["scores"] if "among 2" in score["name"])
    assert "from scratch" in scratch["name"]
    assert scratch["value"] == commonest["value"]
    assert scratch["value"] > 0.9  # words and signs share no token
    assert scratch["gain"][0] <= scratch["value"] - scratch["baseline"] <= scratch["gain"][1]
    assert scratch["n"] == json.loads((root / "classify" / "stage.json").read_text())["metrics"]["held_out"] > 4
    assert scratch["name"] in (root / "report.md").read_text()
    assert scratch["name"] in summary(report, root)
    plan = read_run_plan(root / "plan.json").stages.classify
    assert plan is not None
    assert plan.steps == 60
    steps = {folder.name: len(metrics(folder)) for folder in (root / "classify").glob("*-?")}
    assert steps == {"learnt-0": 60, "learnt-1": 60, "scratch-0": 60, "scratch-1": 60}
    if objective in ("spans", "ul2"):
        assert_t5_writes_the_label(root / "classify" / "model")
    else:
        assert_transformers_tells_the_same(root / "classify" / "model")


def metrics(folder: Path) -> list[Any]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


_ASKED = ["the old river sings under a bright road", "山水天地人日月风云花鸟江河大小"]


def assert_transformers_tells_the_same(folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    read = [tokenizer(text, return_tensors="pt", return_token_type_ids=False) for text in _ASKED]
    wanted = np.concatenate([theirs(**each).logits.softmax(-1).detach().numpy() for each in read])
    ours = athanor.load_classifier(folder)
    assert ours.labels == tuple(theirs.config.id2label.values()) == ("7", "words")
    np.testing.assert_allclose(ours.probabilities(_ASKED), wanted, atol=1e-5)
    assert ours.probabilities(_ASKED).argmax(-1).tolist() == [1, 0]


def assert_t5_writes_the_label(folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    for text, label in zip(_ASKED, ("words", "7"), strict=True):
        written = theirs.generate(**tokenizer(text, return_tensors="pt", return_token_type_ids=False), max_new_tokens=8)
        assert tokenizer.decode(written[0], skip_special_tokens=True) == label
    with pytest.raises(ModelError, match="no classifier"):
        athanor.load_classifier(folder)


def test_a_stopped_fine_tuning_goes_on(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = live(load_recipe(recipe, changes("masked")), tmp_path / "whole")
    told, calls = classify_stage.told_classes, []

    def stop(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return told(*arguments)

    monkeypatch.setattr(classify_stage, "told_classes", stop)
    with pytest.raises(KeyboardInterrupt):
        live(load_recipe(recipe, changes("masked")), tmp_path / "stopped")
    found = live(load_recipe(recipe, changes("masked")), tmp_path / "stopped")
    assert found is not None
    assert wanted is not None
    assert found["scores"] == wanted["scores"]
    assert not list((tmp_path / "stopped" / "classify").glob("*/checkpoints"))
    weights = [tmp_path / run / "classify" / "model" / "model.safetensors" for run in ("whole", "stopped")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_the_verb_tells_classes(recipe: Path, tmp_path: Path) -> None:
    live(load_recipe(recipe, changes("masked_pairs")), tmp_path / "runs" / "b")
    model = str(tmp_path / "runs" / "b" / "classify")
    told = json.loads(said("classify", model, *_ASKED, "--json", folder=tmp_path)[0])["texts"]
    assert [text["label"] for text in told] == ["words", "7"]
    assert all(abs(sum(text["probabilities"].values()) - 1) < 1e-5 for text in told)
    assert "words" in said("classify", model, _ASKED[0], folder=tmp_path)[0]
    assert "no classifier" in said("classify", str(tmp_path / "runs" / "b" / "pretrain"), "a text", folder=tmp_path)[1]


def said(*arguments: str, folder: Path) -> tuple[str, str]:
    return athanor_process(*arguments, folder=folder).communicate()


def test_a_corpus_without_classes_is_refused_before_pretraining(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="0 classes in the training documents have a 'topic'"):
        live(load_recipe(recipe, ["classify=topic"]), tmp_path / "run")
    assert not (tmp_path / "run" / "pretrain").exists()


def test_examples_that_are_too_few_are_refused(recipe: Path, tmp_path: Path) -> None:
    build_corpus([recipe.with_name("texts.jsonl")], (), tmp_path / "corpus", held_out_share=0.1)
    tokenizer, few = train_tokenizer(["a b c"] * 10, 512), ClassifyRecipe(label="label", examples=2)
    LabelledCorpus.read(tmp_path / "corpus", few, tokenizer, seed=5)
    with pytest.raises(RecipeError, match="among 2 labelled documents are 1 classes"):
        LabelledCorpus.read(tmp_path / "corpus", few, tokenizer, seed=6)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["classify=label", "pretrain.objective=prefix"], "fine-tunes masked and denoising models"),
        (["classify.seeds=2"], "lacks classify.label"),
        (["classify=label", "classify.stepps=3"], "has no settings of its own"),
        (["classify.label=label", "classify.stepps=3"], "Did you mean 'steps'"),
    ],
)
def test_what_cannot_be_classified_is_said(change: list[str], words: str, recipe: Path) -> None:
    with pytest.raises(AthanorError) as refused:
        load_recipe(recipe, change)
    assert words in f"{refused.value.message} {refused.value.hint}"
