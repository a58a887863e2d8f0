"""Recipes of other objectives than the next token: they end after pre-training, with a model that others can load."""

from __future__ import annotations

import json
import re
import shutil
from functools import cache
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import load_file

from athanor.base.errors import AthanorError, RecipeError
from athanor.base.machine import Rates, measure
from athanor.models import precision
from athanor.models.shapes import Objective, config_of
from athanor.pipeline import calibration
from athanor.pipeline.arms import Arm
from athanor.pipeline.checkpoint_model import write_checkpoint_model
from athanor.pipeline.job import live
from athanor.pipeline.plans import PretrainPlan, read_run_plan
from athanor.pipeline.recipe_files import load_recipe, shipped_recipes
from athanor.pipeline.summary import summary
from athanor.training.loop import Trainer
from athanor.training.pretraining import OBJECTIVES
from tests.pipeline.conftest import athanor
from tests.pipeline.test_life import assert_same_contents

_TINY = """
seed = 1
precision = "fp32"
threads = 1
[corpus]
sources = ["{texts}"]
decontaminate = false
held_out_share = 0.1
[tokenizer]
vocab_size = 512
[model]
d_model = 64
n_layers = 2
n_heads = 2
max_seq_len = 128
[pretrain]
objective = "{objective}"
steps = 12
rows = 4
length = 128
checkpoint_every = 4
evaluate_every = 6
"""


@pytest.fixture(autouse=True)
def _measured_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "measure", _rates)


@cache
def _rates(_seconds: float, _device: torch.device) -> Rates:
    return measure(0.05)


def write_recipe(tiny_recipe: Path, objective: str) -> Path:
    path = tiny_recipe.with_name(f"{objective}.toml")
    path.write_text(_TINY.format(texts=tiny_recipe.parent / "texts", objective=objective), encoding="utf-8")
    return path


def test_a_run_in_half_precision_scales_its_loss(
    tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "_slower", lambda _: 1.0)  # whatever this CPU is
    recipe = load_recipe(write_recipe(tiny_recipe, "prefix"), ["precision=fp16"])
    live(recipe, tmp_path / "run")
    (checkpoint,) = (tmp_path / "run" / "pretrain" / "checkpoints").glob("step-*")
    assert json.loads((checkpoint / "state.json").read_text())["loss_scale"][1] > 0


@pytest.mark.parametrize("objective", sorted(set(OBJECTIVES) - {"distilled"}))
def test_a_run_ends_after_pretraining_with_its_score_and_model(
    objective: str, tiny_recipe: Path, tmp_path: Path
) -> None:
    root = tmp_path / "run"
    report = live(load_recipe(write_recipe(tiny_recipe, objective)), root)
    assert report["scores"] == json.loads((root / "report.json").read_text())["scores"]
    assert {path.parent.name for path in root.glob("*/stage.json")} == {"corpus", "tokenizer", "shards", "pretrain"}
    for score in report["scores"]:
        low, high = score["gain"]
        gain = (score["baseline"] - score["value"]) * (1 if score["unit"] == "bits/token" else -1)
        assert low <= high
        assert low - 1e-6 <= gain <= high + 1e-6
        assert score["name"] in (root / "report.md").read_text()
        assert score["name"] in summary(report, root)
    assert all(line["heldout_loss"] > 0 for line in metrics(root) if line["step"] % 6 == 0)
    plan = read_run_plan(root / "plan.json").stages.pretrain
    assert plan is not None
    assert plan.model == config_of(plan.objective)(512, 128, d_model=64, n_layers=2, n_heads=2)
    assert_transformers_computes_the_same(root / "pretrain" / "model", report["family"])
    (checkpoint,) = (root / "pretrain" / "checkpoints").iterdir()
    write_checkpoint_model(checkpoint, tmp_path / "again")
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (tmp_path / "again" / name).read_bytes() == (root / "pretrain" / "model" / name).read_bytes(), name


def test_experts_balanced_by_a_bias_are_a_deepseek(tiny_recipe: Path, tmp_path: Path) -> None:
    root = tmp_path / "run"
    changes = ["model.balance=bias", "model.n_experts=4", "model.top_k=1"]
    report = live(load_recipe(write_recipe(tiny_recipe, "experts"), changes), root)
    assert report["family"] == "deepseek_v3"
    assert all(line["expert_load"] >= 1 for line in metrics(root))
    weights = load_file(root / "pretrain" / "model" / "model.safetensors")
    moved = weights["model.layers.0.mlp.gate.e_score_correction_bias"]
    assert 0 < moved.abs().max() < 12.5 * 0.01
    assert_transformers_computes_the_same(root / "pretrain" / "model", "deepseek_v3")


def test_a_student_learns_from_a_run(tiny_recipe: Path, tmp_path: Path) -> None:
    live(load_recipe(write_recipe(tiny_recipe, "prefix")), tmp_path / "teacher")
    student = write_recipe(tiny_recipe, "distilled")
    student.write_text(student.read_text().replace("[tokenizer]\nvocab_size = 512\n", ""))
    changes = [f"pretrain.teacher={tmp_path / 'teacher'}", "model.n_layers=1"]
    report = live(load_recipe(student, changes), tmp_path / "student")
    assert all(line["kl"] > 0 for line in metrics(tmp_path / "student"))
    assert report["stages"]["pretrain"]["parameters"] > 0
    taught, teaching = (tmp_path / name / "tokenizer" / "model" for name in ("student", "teacher"))
    assert (taught / "tokenizer.json").read_bytes() == (teaching / "tokenizer.json").read_bytes()
    assert_transformers_computes_the_same(tmp_path / "student" / "pretrain" / "model", report["family"])
    with pytest.raises(RecipeError, match="needs a teacher"):
        live(load_recipe(student), tmp_path / "other")
    with pytest.raises(AthanorError, match="There is no model 'nobody'"):
        live(load_recipe(student, ["pretrain.teacher=nobody"]), tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("recipe", "change", "named"),
    [
        ("default", "model.n_experts=8", r"model\.n_experts needs experts"),
        ("default", "pretrain.teacher=one", r"pretrain\.teacher says nothing"),
        ("distill", "tokenizer.vocab_size=1024", r"takes the teacher's tokenizer"),
        ("moe", "model.top_k=9", r"top_k = 9 exceeds n_experts = 8"),
        ("moe", "model.d_ff=129", r"d_ff = 129 cannot be divided among the 2 experts"),
        ("moe", "model.balance=luck", r"model\.balance = 'luck'"),
    ],
)
def test_experts_and_teachers_that_cannot_be(recipe: str, change: str, named: str) -> None:
    with pytest.raises(RecipeError, match=named):
        load_recipe(recipe, [change])


def metrics(root: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (root / "pretrain" / "metrics.jsonl").read_text().splitlines()]


def assert_transformers_computes_the_same(folder: Path, family: str) -> None:
    import transformers

    from athanor import models

    settings = json.loads((folder / "config.json").read_text())
    theirs = getattr(transformers, settings["architectures"][0]).from_pretrained(folder).eval()
    tokenizer, ours = transformers.AutoTokenizer.from_pretrained(folder), models.load(folder)
    ids = tokenizer("The old house sings 山水天地.", return_tensors="pt")["input_ids"]
    around = tokenizer.convert_ids_to_tokens(ids[0])
    with torch.no_grad():
        if family == "t5":
            assert around[-1] == tokenizer.eos_token == "<|endoftext|>"
            found, wanted = ours(ids, ids), theirs(input_ids=ids, decoder_input_ids=ids).logits
        else:
            output = theirs(ids)
            wanted = output.prediction_logits if "prediction_logits" in output else output.logits
            found = ours(ids)
        if family in ("bert", "electra"):
            assert (around[0], around[-1]) == (tokenizer.cls_token, tokenizer.sep_token)
            assert tokenizer.mask_token == "<|mask|>"
            assert tokenizer("a", "b")["token_type_ids"].count(1) == 2
    torch.testing.assert_close(found.reshape(wanted.shape), wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("objective", ["masked_pairs", "replaced", "spans", "experts"])
def test_stopped_anywhere_it_ends_with_the_same_files(
    objective: str, tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = ["model.balance=bias"] if objective == "experts" else []
    recipe = load_recipe(write_recipe(tiny_recipe, objective), changes)
    whole, stopped = tmp_path / "whole" / "run", tmp_path / "stopped" / "run"
    live(recipe, whole)
    step = Trainer._step

    def stop(trainer: Trainer, *arguments: Any) -> None:
        if trainer.outcome.steps == 9:
            raise KeyboardInterrupt
        step(trainer, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", stop)
        with pytest.raises(KeyboardInterrupt):
            live(recipe, stopped)
    shutil.rmtree(stopped / "pretrain" / "model", ignore_errors=True)
    live(recipe, stopped)
    for root in (whole, stopped):  # how often it was resumed is told there
        (root / "pretrain" / "incidents.json").unlink()
    assert_same_contents(whole, stopped)


@pytest.mark.slow
def test_a_budget_is_kept_and_its_plan_repeats_the_run(tiny_recipe: Path, tmp_path: Path) -> None:
    text = write_recipe(tiny_recipe, "masked").read_text().replace("steps = 12\n", "").replace("rows = 4\n", "")
    path = tmp_path / "timed.toml"
    path.write_text('budget = "2m"\n' + text)
    report = live(load_recipe(path, ["pretrain.share=0.02"]), tmp_path / "first")
    assert report["timing"]["seconds"] < 40
    plan = read_run_plan(tmp_path / "first" / "plan.json")
    live(plan.recipe, tmp_path / "again", repeated=plan)
    weights = Path("pretrain", "model", "model.safetensors")
    assert (tmp_path / "first" / weights).read_bytes() == (tmp_path / "again" / weights).read_bytes()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("pretrain.objective=maskd", r"pretrain\.objective = 'maskd' cannot be used.*'masked'"),
        ("sft.steps=5", r"ends after pre-training, so \[sft\] has nothing to say.*Leave \[sft\] out"),
        ("rl.group=4", r"\[rl\] has nothing to say"),
        ("evaluate.problems=40", r"\[evaluate\] has nothing to say"),
        ("pretrain.first_rows=1", r"pretrain\.first_rows cannot be used.*do not grow"),
        ("pretrain.length=64", r"length = 64 is not model\.max_seq_len = 256"),
        ("model.n_kv_heads=1", r"model\.n_kv_heads cannot be set.*Known there: d_ff, d_model"),
        ("model.n_heads=3", r"model is impossible: d_model = 64 is not a multiple"),
    ],
)
def test_what_cannot_be_is_refused(change: str, named: str) -> None:
    with pytest.raises(RecipeError) as refused:
        load_recipe("bert", [change])
    assert re.search(named, f"{refused.value.message} {refused.value.hint}")


def test_an_experiment_compares_decoders() -> None:
    with pytest.raises(RecipeError, match="no bits per byte to compare"):
        Arm("spans", "spans", {"pretrain": {"objective": "spans"}}).recipe({"pretrain": {"steps": 5}, "budget": "5m"})


def test_every_objective_has_a_name_and_shipped_recipes_are_right() -> None:
    assert {"next_token", *OBJECTIVES} == set(get_args(Objective))
    for name in shipped_recipes():
        assert load_recipe(name).budget in ("10m", None)


def test_the_command_prints_the_score(tiny_recipe: Path, tmp_path: Path) -> None:
    said = athanor("run", str(write_recipe(tiny_recipe, "masked")), "--name", "mine", folder=tmp_path)
    assert "Held out, hidden tokens: " in said
    assert "parameters of the family bert" in said
    assert '"name": "mine"' in athanor("history", "--json", folder=tmp_path)


def test_the_plan_is_checked_data(tiny_recipe: Path, tmp_path: Path) -> None:
    root = tmp_path / "run"
    live(load_recipe(write_recipe(tiny_recipe, "spans")), root)
    data = json.loads((root / "pretrain" / "plan.json").read_text())
    assert PretrainPlan.model_validate(data).model_dump(mode="json") == data
    data["objective"] = "span"
    path = root / "plan.json"
    whole = json.loads(path.read_text())
    whole["stages"]["pretrain"] = data
    path.write_text(json.dumps(whole))
    with pytest.raises(RecipeError, match=r"stages\.pretrain\.objective"):
        read_run_plan(path)
