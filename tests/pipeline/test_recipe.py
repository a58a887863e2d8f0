"""Recipes: every wrong setting is one sentence that names the key and what would be accepted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from athanor.base.errors import RecipeError
from athanor.base.files import to_json
from athanor.pipeline.recipe import parse_duration
from athanor.pipeline.recipe_files import load_recipe, shipped_recipes


def test_the_shipped_recipes_are_valid_and_can_be_saved() -> None:
    assert {"default", "smoke"} <= set(shipped_recipes())
    for name in shipped_recipes():
        recipe = load_recipe(name)
        to_json(recipe.model_dump(mode="json"))
    assert load_recipe("default").budget_seconds == 600
    smoke = load_recipe("smoke")
    assert smoke.budget_seconds is None
    assert smoke.pretrain.steps
    assert smoke.sft.steps
    assert smoke.rl.steps


def test_a_resolved_recipe_is_a_recipe() -> None:
    from athanor.pipeline.recipe import Recipe

    recipe = load_recipe("smoke", ["rl.levels.addition=[1, 2]", "corpus.weights.mine = 2.0"])
    assert Recipe.model_validate(recipe.model_dump(mode="json")) == recipe


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("pretrain.steps=7", ("pretrain", "steps", 7)),
        ("pretrain.steps = 1_000", ("pretrain", "steps", 1000)),
        ("pretrain.steps=0x10", ("pretrain", "steps", 16)),
        ("pretrain.clip=0.5", ("pretrain", "clip", 0.5)),
        ("pretrain.clip=1e-3", ("pretrain", "clip", 0.001)),
        ("evaluate.all_text_baseline=false", ("evaluate", "all_text_baseline", False)),
        ('corpus.sources=["./a", "b c=d"]', ("corpus", "sources", ["./a", "b c=d"])),
        ("corpus.weights={a = 1, b = 0.5}", ("corpus", "weights", {"a": 1.0, "b": 0.5})),
        ("rl.clip_ratio=[0.1, 0.3]", ("rl", "clip_ratio", (0.1, 0.3))),
        ("rl.levels.addition=[1]", ("rl", "levels", {"addition": [1]})),
        ("rl.loss=policy_gradient", ("rl", "loss", "policy_gradient")),
        ('rl.loss="policy_gradient"', ("rl", "loss", "policy_gradient")),
        ("rl.loss='policy_gradient'", ("rl", "loss", "policy_gradient")),
        ("pretrain.optimizer.muon_lr=0.01", ("pretrain", "optimizer", "muon_lr", 0.01)),
        ("pretrain.optimizer=lion", ("pretrain", "optimizer", "kind", "lion")),
        ("rl.optimizer.kind=adamw", ("rl", "optimizer", "kind", "adamw")),
        ("sft.optimizer.cautious=false", ("sft", "optimizer", "cautious", False)),
        ("pretrain.schedule=cosine", ("pretrain", "schedule", "cosine")),
        ("pretrain.average=tail", ("pretrain", "average", "tail")),
    ],
)
def test_set_takes_every_kind_of_value(override: str, value: tuple[Any, ...]) -> None:
    found: Any = load_recipe("smoke", [override])
    for name in value[:-1]:
        found = getattr(found, name)
    assert found == value[-1]


def test_later_settings_win_and_options_win_over_all() -> None:
    recipe = load_recipe("default", ["seed=1", "seed=2", "budget=5m"], budget="3m", seed=None)
    assert recipe.seed == 2
    assert recipe.budget_seconds == 180


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("pretrian.steps=7", "unknown key 'pretrian'.*Did you mean 'pretrain'"),
        ("pretrain.step=7", r"unknown key 'pretrain\.step'.*Did you mean 'steps'"),
        ("pretrain.optimizer.moun_lr=1", r"pretrain\.optimizer\.moun_lr.*Did you mean 'muon_lr'"),
        ("zzz=1", "unknown key 'zzz'.*Known there: budget, classify, corpus"),
        ("pretrain.steps=0", r"pretrain\.steps = 0 .*greater than 0"),
        ("pretrain.steps=many", r"pretrain\.steps = 'many'"),
        ("pretrain.steps=1.5", r"pretrain\.steps = 1\.5"),
        ("pretrain.steps=", r"pretrain\.steps = ''"),
        ("pretrain=5", "pretrain = 5"),
        ("seed.x=1", "seed has no settings of its own"),
        ("seed=-1", "seed = -1"),
        ("seed=1979-05-27", "seed"),
        ("steps", "cannot be read.*pretrain.steps=200"),
        ("=3", "cannot be read"),
        ("a..b=3", "cannot be read"),
        ("precision=fp8", "precision = 'fp8'.*'fp32'"),
        ("pretrain.clip=inf", r"pretrain\.clip"),
        ("pretrain.clip=nan", r"pretrain\.clip"),
        ("tokenizer.vocab_size=1000", "vocab_size = 1000.*multiple of 64"),
        ("rl.group=1", "group = 1"),
        ("rl.loss=dpo", "rl.loss = 'dpo'"),
        ("rl.environments=['adition']", "adition.*Did you mean addition"),
        ("rl.levels.addition=[99]", "addition has no level 99"),
        ("rl.levels.adition=[1]", "rl.levels names 'adition'"),
        ("pretrain.length=513", r"pretrain\.length = 513 .*model\.max_seq_len = 512"),
        ("rl.length=4096", r"rl\.length = 4096"),
        ("sft.share=0.7", "less than a fifth"),
        ("budget=10", "budget = 10"),
        ("budget=soon", "time 'soon' cannot be read"),
        ("budget=90s", "90s is too small.*2m"),
        ("budget=0s", "too small"),
        ("budget=99999999999999d", "too long"),
        ("model.d_model=1000000000000", r"model\.d_model .*less than or equal"),
        ("model.n_kv_heads=3", "n_heads = 2 is not a multiple of n_kv_heads = 3"),
        ("rl.prompts=1000000000", r"rl\.prompts"),
        ("rl.environments=[]", r"rl\.environments"),
        ("rl.levels={counting=[]}", "names no level"),
        ("rl.length=32", r"rl\.length = 32"),
        ("rl.rows=8", r"unknown key 'rl\.rows'"),
        ("rl.clip_ratio=[1.5, 0.2]", r"rl\.clip_ratio"),
        ("pretrain.optimizer.muon_lr=1e300", r"muon_lr"),
        ("pretrain.optimizer=sgd", r"pretrain\.optimizer\.kind = 'sgd'.*'muon', 'adamw' or 'lion'"),
        ("pretrain.schedule=step", r"pretrain\.schedule = 'step'.*'wsd', 'cosine' or 'linear'"),
        ("pretrain.average=all", r"pretrain\.average = 'all'"),
        ("pretrain.final=1", r"pretrain\.final = 1 .*less than 1"),
        ("threads=100000", "threads"),
        ("model.max_seq_len=32", r"model\.max_seq_len = 32"),
    ],
)
def test_a_wrong_setting_is_named(override: str, named: str) -> None:
    with pytest.raises(RecipeError) as raised:
        load_recipe("smoke", [override])
    import re

    assert re.search(named, str(raised.value)), str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["schedule=cosine"], "pretrain.steps must be given"),
        (["schedule=linear", "steps=9", "decay_share=0.3"], "decay_share says nothing"),
        (["schedule=cosine", "steps=9", "average=tail"], "that of the whole run"),
    ],
)
def test_schedules_that_do_not_go_with_the_rest(overrides: list[str], named: str) -> None:
    with pytest.raises(RecipeError, match=named):
        load_recipe("default", [f"pretrain.{override}" for override in overrides])


@pytest.mark.parametrize("stage", ["pretrain", "sft", "rl"])
def test_without_a_budget_every_stage_needs_steps(stage: str, tmp_path: Path) -> None:
    names = [name for name in ("pretrain", "sft", "rl") if name != stage]
    (tmp_path / "mine.toml").write_text("\n".join(f"[{name}]\nsteps = 2" for name in names))
    with pytest.raises(RecipeError, match=rf"{stage}\.steps must be given"):
        load_recipe(tmp_path / "mine.toml")
    assert load_recipe(tmp_path / "mine.toml", budget="2m").budget_seconds == 120


@pytest.mark.parametrize(
    ("text", "seconds"), [("120s", 120), ("2m", 120), ("1h30m", 5400), ("1.5h", 5400), ("1d", 86_400), ("2m30s", 150)]
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "10", "m", "10 m", "-10m", "10x", "1e3s", "10m!", "ten"])
def test_a_time_that_cannot_be_read_shows_how_to_write_one(text: str) -> None:
    with pytest.raises(RecipeError, match="1h30m"):
        parse_duration(text)


def test_a_recipe_that_is_not_there_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"Did you mean 'smoke'.*Shipped: bert, default, "):
        load_recipe("smok")
    with pytest.raises(RecipeError, match=r"no recipe .*missing\.toml"):
        load_recipe(tmp_path / "missing.toml")
    (tmp_path / "folder.toml").mkdir()
    with pytest.raises(RecipeError, match="no recipe"):
        load_recipe(tmp_path / "folder.toml")


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"seed = ", "not valid TOML"),
        (b"seed = 1\nseed = 2", "not valid TOML"),
        (b"\xff\xfe\x00", "cannot be read"),
        (b"seed = 1\n[pretrain]\nstep = 3", "Did you mean 'steps'"),
    ],
)
def test_a_broken_file_is_named(content: bytes, named: str, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_bytes(content)
    with pytest.raises(RecipeError, match=named):
        load_recipe(tmp_path / "mine.toml", budget="2m")
