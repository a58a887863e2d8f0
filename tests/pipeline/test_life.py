"""The whole life: it repeats bit for bit, survives being killed anywhere, and ends with a model others can load."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from athanor.base.errors import RecipeError
from athanor.base.files import write_json
from athanor.pipeline.folders import STAGES
from athanor.pipeline.plans import RunPlan, StagePlans, SupervisedPlan, read_run_plan
from athanor.pipeline.recipe_files import load_recipe
from athanor.training.optimizers import OptimizerConfig
from athanor.training.schedules import Turn
from tests.pipeline.conftest import athanor, athanor_process

_CLOCK_FILES = {"timing.jsonl", "calibration.json", "report.html", "report.md", ".lock"}


def contents(run: Path) -> dict[str, Any]:
    """Every file of a run without what depends on the clock: `timing` subtrees and the files named above."""

    def without_timing(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: without_timing(v) for k, v in value.items() if k != "timing"}
        return value

    found: dict[str, Any] = {}
    for path in sorted(p for p in run.rglob("*") if p.is_file()):
        name = path.relative_to(run).as_posix()
        if path.name in _CLOCK_FILES or name.startswith(("tensorboard/", "plots/")):
            continue
        data = path.read_bytes()
        found[name] = without_timing(json.loads(data)) if path.suffix == ".json" else data
    return found


def assert_same_contents(first: Path, second: Path) -> None:
    """Says where two runs part, and on what machine each computed the stage that does."""
    one, two = contents(first), contents(second)
    assert sorted(one) == sorted(two)
    different = [name for name in one if one[name] != two[name]]
    said: list[Any] = [different]
    for name in (name for name in different if name.endswith("metrics.jsonl")):
        lines = zip(one[name].splitlines(), two[name].splitlines(), strict=False)
        said.append(next(((a, b) for a, b in lines if a != b), "one has more lines"))
        records = (json.loads((run / name).with_name("stage.json").read_text()) for run in (first, second))
        said += [record["timing"].get("exactness") for record in records]
    assert not different, said


def kill_during(stage: str, arguments: tuple[str, ...], folder: Path, run: Path, delay: float) -> bool:
    """Starts the command and kills it `delay` seconds into the stage; whether the stage was still unfinished then."""
    record = run / stage / "stage.json"
    before = record.stat().st_mtime_ns if record.exists() else 0
    process = athanor_process(*arguments, folder=folder)
    while process.poll() is None and not (record.exists() and record.stat().st_mtime_ns > before):
        time.sleep(0.002)
    time.sleep(delay)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    return json.loads(record.read_text())["status"] == "running"


def seconds_of_stages(run: Path) -> Iterator[tuple[str, float]]:
    for stage in (one for one in STAGES if (run / one).exists()):
        yield stage, json.loads((run / stage / "stage.json").read_text())["timing"]["seconds"]


def kill_everywhere(recipe: str, folder: Path, again: frozenset[str]) -> None:
    """An uninterrupted run, and one killed at a random point of every stage, of those in `again` a second time, must
    end with the same files.
    """
    arguments = ("run", recipe, "--name", "life")
    (folder / "whole").mkdir()
    athanor(*arguments, folder=folder / "whole")
    whole = folder / "whole" / "runs" / "life"
    (folder / "killed").mkdir()
    killed = folder / "killed" / "runs" / "life"
    chance = random.Random(20_261_121)
    for stage, seconds in seconds_of_stages(whole):
        while not kill_during(stage, arguments, folder / "killed", killed, chance.random() * seconds * 0.5):
            shutil.rmtree(killed / stage)  # it had just finished: as if it had not begun
        if stage in again:
            kill_during(stage, arguments, folder / "killed", killed, chance.random() * seconds * 0.3)
    athanor(*arguments, folder=folder / "killed")
    assert_same_contents(whole, killed)


def test_a_run_killed_in_every_stage_ends_like_one_that_was_not(tiny_recipe: Path, tmp_path: Path) -> None:
    kill_everywhere(str(tiny_recipe), tmp_path, again=frozenset())


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_smoke_killed_ten_times_ends_like_one_that_was_not(tmp_path: Path) -> None:
    kill_everywhere("smoke", tmp_path, again=frozenset({"corpus", "pretrain", "sft", "rl", "evaluate"}))


def test_a_life_and_what_it_leaves(tiny_recipe: Path, tmp_path: Path) -> None:
    report = json.loads(athanor("run", str(tiny_recipe), "--name", "one", "--json", folder=tmp_path))
    run = tmp_path / "runs" / "one"
    assert report == json.loads((run / "report.json").read_text())
    assert set(report["lineage"]) == set(STAGES) - {"classify"}  # for encoders
    assert (run / "report.html").stat().st_size > 10_000
    assert "your own" in (run / "corpus" / "DATA_LICENSES.md").read_text().lower()

    # Again: nothing is left to do. With another setting: only what depends on it is made anew.
    weights = (run / "pretrain" / "model" / "model.safetensors").stat().st_mtime_ns
    athanor("run", str(tiny_recipe), "--name", "one", "--set", "sft.steps=6", folder=tmp_path)
    assert (run / "pretrain" / "model" / "model.safetensors").stat().st_mtime_ns == weights
    assert json.loads((run / "sft" / "stage.json").read_text())["metrics"]["steps"] == 6

    # The plan of the whole run is written again from those of its stages.
    plan = (run / "plan.json").read_text()
    (run / "plan.json").unlink()
    athanor("run", str(tiny_recipe), "--name", "one", "--set", "sft.steps=6", folder=tmp_path)
    assert (run / "plan.json").read_text() == plan

    answer = json.loads(
        athanor("generate", "one", "--prompt", "Hello", "--chat", "--max-tokens", "8", "--json", folder=tmp_path)
    )
    assert answer["finish_reason"] in ("stop", "length")
    assert_loads_in_transformers(run / "rl" / "model")


def test_other_optimizers_schedules_and_growing_batches(tiny_recipe: Path, tmp_path: Path) -> None:
    wishes = (
        "pretrain.optimizer=lion", "pretrain.schedule=cosine", "pretrain.final=0.1", "pretrain.average=ema",
        "pretrain.first_rows=1", "pretrain.first_length=16", "sft.optimizer=adamw", "sft.average=tail",
    )  # fmt: skip
    sets = [part for wish in wishes for part in ("--set", wish)]
    athanor("run", str(tiny_recipe), "--name", "other", *sets, folder=tmp_path)
    run = tmp_path / "runs" / "other"
    plan = read_run_plan(run / "plan.json").stages
    assert plan.pretrain is not None
    assert plan.sft is not None
    assert (plan.pretrain.optimizer.kind, plan.sft.optimizer.kind) == ("lion", "adamw")
    lines = (run / "pretrain" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["rate"] for line in lines][-1] == pytest.approx(0.1, abs=0.02)
    metrics = json.loads((run / "pretrain" / "stage.json").read_text())["metrics"]
    assert plan.pretrain.rows == 4
    assert plan.pretrain.expected_tokens == int(24 * 4 * 64 / 2)  # a quarter in rows of 1, one in rows of 2
    assert metrics["places"] == pytest.approx(plan.pretrain.expected_tokens, rel=0.1)

    # The last checkpoint is the model that the stage made, averages included.
    for stage in ("pretrain", "sft"):
        (checkpoint,) = (run / stage / "checkpoints").iterdir()
        refused = athanor_process("chat", str(checkpoint), folder=tmp_path)
        assert "athanor export" in refused.communicate()[1]
        athanor("export", str(checkpoint), f"{stage}-again", folder=tmp_path)
        for name in ("model.safetensors", "config.json", "generation_config.json", "tokenizer.json"):
            again, made = (folder / name for folder in (tmp_path / f"{stage}-again", run / stage / "model"))
            assert again.read_bytes() == made.read_bytes(), name
    (checkpoint / "state.safetensors").write_bytes(b"nothing")
    process = athanor_process("export", str(checkpoint), "damaged", folder=tmp_path)
    assert "is damaged" in process.communicate()[1]
    assert process.returncode == 2


def assert_loads_in_transformers(folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import athanor as package

    ours = package.load(folder)
    theirs, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    messages = [{"role": "user", "content": "Copy: river 山水"}]
    ids = ours.chat_prompt(messages)
    assert tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False) == ids
    with torch.no_grad():
        torch.testing.assert_close(
            theirs(torch.tensor([ids])).logits, ours.model(torch.tensor([ids])), atol=1e-4, rtol=1e-4
        )
    # A barely trained model has near ties, so greedy text is compared as far as its choices are clear.
    reply = ours.chat(messages, temperature=0.0, max_tokens=16, repetition_penalty=1.0)
    their_reply = theirs.generate(
        torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long), max_new_tokens=16,
        do_sample=False, repetition_penalty=1.0, temperature=None, top_p=None,
    )  # fmt: skip
    assert their_reply[0, len(ids) :].tolist() == reply.tokens


def test_a_plan_repeats_a_budgeted_run_exactly(tiny_recipe: Path, tmp_path: Path) -> None:
    timed = tiny_recipe.read_text().replace("steps = 24", "").replace("steps = 4\n", "")
    path = tmp_path / "timed.toml"
    path.write_text('budget = "2m"\n' + timed)
    quick = ("--set", "pretrain.share=0.05", "--set", "sft.share=0.04", "--set", "rl.share=0.04")
    athanor("run", str(path), "--name", "first", *quick, folder=tmp_path)
    plan = tmp_path / "runs" / "first" / "plan.json"
    athanor("run", "--name", "again", "--plan", str(plan), folder=tmp_path)
    first, again = (tmp_path / "runs" / name for name in ("first", "again"))
    for stage in ("pretrain", "sft", "rl", "control"):
        weights = Path(stage) / "model" / "model.safetensors"
        assert (first / weights).read_bytes() == (again / weights).read_bytes()
    assert contents(first)["plan.json"] == contents(again)["plan.json"]
    for name in ("text", "exact_match", "pass_rates", "samples"):
        measured = Path("evaluate") / f"{name}.json"
        assert (first / measured).read_bytes() == (again / measured).read_bytes()
    for run in (first, again):
        timing = json.loads((run / "report.json").read_text())["timing"]
        assert timing["seconds"] < 1.15 * 120


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda plan: plan.pop("recipe"), "lacks recipe"),
        (lambda plan: plan["recipe"].update(seeed=1), r"unknown key 'recipe\.seeed'.*Did you mean 'seed'"),
        (lambda plan: plan.update(schema_version=1), "not a plan of this version"),
        (lambda plan: plan["stages"].update(pretrian={}), "Did you mean 'pretrain'"),
        (lambda plan: plan["stages"]["sft"].pop("rows"), r"lacks stages\.sft\.rows"),
        (lambda plan: plan["stages"]["sft"].update(rows=0), r"stages\.sft\.rows = 0 .*greater than 0"),
        (lambda plan: plan["stages"].update(sft=[]), r"stages\.sft"),
        (lambda plan: plan["stages"]["sft"].update(length=4096), r"stages\.sft\.length = 4096 exceeds"),
    ],
)
def test_a_wrong_plan_file_is_named(change: Callable[[Any], Any], named: str, tmp_path: Path) -> None:
    recipe = load_recipe("smoke")
    sft = SupervisedPlan(
        precision="fp32", rows=4, length=64, micro_rows=4, steps=3, seconds=None, optimizer=OptimizerConfig(), warmup=1,
        decay_share=0.5, clip=1.0, checkpoint_every=1, evaluate_every=1, turns=(Turn(1, 3),),
    )  # fmt: skip
    right = RunPlan(recipe=recipe, stages=StagePlans(sft=sft))
    path = tmp_path / "plan.json"
    write_json(path, right.model_dump(mode="json"))
    assert read_run_plan(path) == right
    plan = json.loads(path.read_text())
    change(plan)
    write_json(path, plan)
    with pytest.raises(RecipeError, match=named):
        read_run_plan(path)
