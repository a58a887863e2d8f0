"""Recipes: what a run shall do, as TOML checked key by key.

A setting that is absent is decided by the planner from the budget and the machine; a setting that is given is kept. An
unknown key is an error that names the nearest one there is.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Mapping, Sequence
from importlib import resources
from inspect import signature
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from athanor.base.errors import ModelError, RecipeError
from athanor.environments import load_environment
from athanor.models.config import standard_config
from athanor.models.shapes import LEARNT_POSITIONS, Objective, config_of

Weight = Annotated[float, Field(ge=0, le=1e6)]
Rate = Annotated[float, Field(gt=0, le=10)]
Size = Annotated[int, Field(gt=0, le=1 << 20)]
Steps = Annotated[int, Field(gt=0, le=10**9)]


_LEAST_CONVERSATION = 64  # places that a short question with its answer takes


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class CorpusRecipe(_Section):
    """sources: "default", names of packaged sources, or paths of files and folders. weights: by source, how often it is
    read.

    decontaminate: drop what overlaps the packaged test sets; without it no package is needed for a user's own text.
    """

    sources: list[str] = ["default"]
    held_out_share: float = Field(default=0.02, gt=0, lt=1)
    limit_bytes: int | None = Field(default=None, gt=0, le=10**15)
    weights: dict[str, Weight] = {}
    decontaminate: bool = True


class TokenizerRecipe(_Section):
    """vocab_size: all ids, control tokens included; a multiple of 64."""

    vocab_size: int = Field(default=8192, ge=512, le=1 << 20, multiple_of=64)


class ModelRecipe(_Section):
    """Sizes of the network; what is absent is planned."""

    d_model: Size | None = None
    n_layers: int | None = Field(default=None, gt=0, le=4096)
    n_heads: int | None = Field(default=None, gt=0, le=4096)
    n_kv_heads: int | None = Field(default=None, gt=0, le=4096)
    head_dim: int | None = Field(default=None, gt=0, le=4096)
    d_ff: Size | None = None
    max_seq_len: int = Field(default=1024, ge=128, le=1 << 20)

    @property
    def sizes(self) -> dict[str, int]:
        """The sizes that are given, by their name in `standard_config`."""
        return {name: value for name, value in self if value is not None and name != "max_seq_len"}


class OptimizerRecipe(_Section):
    """What steps the matrices: "muon" (the rest then by AdamW), "adamw", or "lion" for everything. The other settings
    are those of `OptimizerConfig`: peak learning rates, decay, and the parts of Muon. `optimizer = "lion"` is short for
    `optimizer.kind = "lion"`.
    """

    kind: Literal["muon", "adamw", "lion"] = "muon"
    muon_lr: Rate | None = None
    adam_lr: Rate | None = None
    embedding_lr: Rate | None = None
    head_lr: Rate | None = None
    gain_lr: Rate | None = None
    bias_lr: Rate | None = None
    weight_decay: float | None = Field(default=None, ge=0, le=10)
    table_decay: float | None = Field(default=None, ge=0, le=10)
    momentum_warmup: int | None = Field(default=None, ge=0, le=10**9)
    row_equilibration: bool | None = None
    row_moment: bool | None = None
    renormalise: bool | None = None
    cautious: bool | None = None


def _spelt_out(optimizer: Any) -> Any:
    """The section that an optimizer's bare name stands for."""
    return {"kind": optimizer} if isinstance(optimizer, str) else optimizer


class KeepRecipe(_Section):
    """Checkpoints that are kept while a stage trains: the newest `last`; the best by the stage's held-out measure; of
    those every so many steps the newest `most`.
    """

    last: int = Field(default=2, ge=1, le=1000)
    best: bool = False
    every: Steps | None = None
    most: int = Field(default=10, ge=1, le=1000)


class TrainingRecipe(_Section):
    """steps: updates, or absent to train for a share of the budget. length: places of a row; micro_rows of them go
    through the model at a time.

    schedule: of the learning rate after the warm-up: "wsd" stays at the peak and falls for the last decay_share of the
    run, "linear" and "cosine" fall all the way and need `steps`; final: the share of the peak that all end at. average:
    of the weights over the decay, for the saved model: "tail" of all its steps, "ema" of the later ones more.
    recompute: "blocks" keeps only the input of each layer for the backward pass, which takes a third longer.
    """

    steps: Steps | None = None
    length: int | None = Field(default=None, ge=16, le=1 << 20)
    micro_rows: Size | None = None
    warmup: int | None = Field(default=None, ge=0, le=10**9)
    decay_share: float | None = Field(default=None, ge=0, lt=1)
    schedule: Literal["wsd", "cosine", "linear"] = "wsd"
    final: float = Field(default=0.0, ge=0, lt=1)
    average: Literal["none", "tail", "ema"] = "none"
    recompute: Literal["none", "blocks"] = "none"
    clip: float = Field(default=1.0, gt=0)
    checkpoint_every: Steps | None = None
    evaluate_every: Steps | None = None
    keep: KeepRecipe = KeepRecipe()
    optimizer: Annotated[OptimizerRecipe, BeforeValidator(_spelt_out)] = OptimizerRecipe()


class PretrainRecipe(TrainingRecipe):
    """objective: what is learnt, and with it the kind of network (docs/objectives.md); a run with another one than
    "next_token" ends after pre-training. rows × length: places of a batch. share: part of the budget, at most; the
    other shares come first.

    first_rows, first_length: what a batch begins with, to double until half of the tokens are read; rows are cut into
    shorter ones, so that a batch has the same tokens.
    """

    objective: Objective = "next_token"
    rows: Size | None = None
    first_rows: Size | None = None
    first_length: int | None = Field(default=None, ge=16, le=1 << 20)
    share: float = Field(default=1.0, gt=0, le=1)


class SftRecipe(TrainingRecipe):
    """rows × length: places of a batch. sources: "default", names of conversation sources, or .jsonl files of
    {"messages": [...]}. conversations: how many are made; planned where absent.
    """

    length: int | None = Field(default=None, ge=_LEAST_CONVERSATION, le=1 << 20)
    rows: Size | None = None
    share: float = Field(default=0.2, gt=0, lt=1)
    sources: list[str] = ["default"]
    conversations: int | None = Field(default=None, ge=100, le=10**7)
    weights: dict[str, Weight] | None = None


class RlRecipe(TrainingRecipe):
    """environments and levels: what is drawn from; without levels they are probed for mixed results.

    prompts × group answers a step. advantage, loss, aggregation: rows of the registries in `alignment.policy`.
    """

    length: int | None = Field(default=None, ge=_LEAST_CONVERSATION, le=1 << 20)
    share: float = Field(default=0.24, gt=0, lt=1)
    environments: list[str] = Field(default=["addition", "reversing", "counting", "sorting_letters"], min_length=1)
    levels: dict[str, list[int]] | None = None
    prompts: int = Field(default=24, gt=0, le=1 << 16)
    group: int = Field(default=8, ge=2, le=1024)
    max_tokens: int = Field(default=48, gt=0, le=1 << 16)
    advantage: Literal["minus_mean", "standardised"] = "minus_mean"
    loss: Literal["clipped", "policy_gradient"] = "clipped"
    aggregation: Literal["token_mean", "sequence_mean"] = "token_mean"
    clip_ratio: tuple[Annotated[float, Field(gt=0, lt=1)], Annotated[float, Field(gt=0)]] = (0.2, 0.28)


class EvaluateRecipe(_Section):
    """held_out_tokens: scored for bits per byte. problems: held-out ones for pass@k, with `samples` answers each.
    per_task: problems a task for exact match; both are fewer where a budget has no time for them. all_text_baseline:
    fit Kneser-Ney to the whole corpus too.
    """

    share: float = Field(default=0.1, gt=0, lt=1)
    held_out_tokens: int | None = Field(default=None, ge=1000, le=10**9)
    problems: int | None = Field(default=None, ge=1, le=10**6)
    samples: int = Field(default=8, ge=8, le=1024)
    per_task: int | None = Field(default=None, ge=1, le=10**6)
    all_text_baseline: bool = True


class Recipe(_Section):
    """budget: time for the whole job, such as "10m", "90s", "2h", "1d"; absent where every stage has fixed steps.
    sharded: where several processes train together, each holds a part of the model (FSDP2) instead of a copy (DDP).
    """

    budget: str | None = None
    seed: int = Field(default=0, ge=0, lt=1 << 64)
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    threads: int | None = Field(default=None, gt=0, le=1024)
    sharded: bool = False
    corpus: CorpusRecipe = CorpusRecipe()
    tokenizer: TokenizerRecipe = TokenizerRecipe()
    model: ModelRecipe = ModelRecipe()
    pretrain: PretrainRecipe = PretrainRecipe()
    sft: SftRecipe = SftRecipe()
    rl: RlRecipe = RlRecipe()
    evaluate: EvaluateRecipe = EvaluateRecipe()

    @property
    def budget_seconds(self) -> float | None:
        return None if self.budget is None else parse_duration(self.budget)

    @property
    def stages(self) -> tuple[str, ...]:
        """The sections of the stages that train."""
        return ("pretrain", "sft", "rl") if self.pretrain.objective == "next_token" else ("pretrain",)


_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
SHORTEST_BUDGET = 120.0
_LONGEST = 1000 * 86_400.0


def parse_duration(text: str) -> float:
    """Seconds of "90s", "10m", "1h30m", "2d". Raises RecipeError."""
    if not re.fullmatch(r"(\d+(\.\d+)?[smhd])+", text):
        raise RecipeError(f"The time {text!r} cannot be read.", 'Write it like "90s", "10m", "1h30m" or "2d".')
    seconds = sum(float(number) * _UNITS[unit] for number, unit in re.findall(r"(\d+(?:\.\d+)?)([smhd])", text))
    if seconds > _LONGEST:
        raise RecipeError(f"The time {text[:40]!r} is too long.", "The longest is 1000d.")
    return seconds


def shipped_recipes() -> list[str]:
    return sorted(
        p.name.removesuffix(".toml")
        for p in (resources.files(__package__) / "recipes").iterdir()
        if p.name.endswith(".toml")
    )


def load_recipe(name: str | Path, overrides: Sequence[str] = (), **settings: Any) -> Recipe:
    """The recipe of this name (a shipped one, or a .toml file) with "a.b=value" overrides and top-level settings.

    Raises RecipeError, naming the key and what would be accepted.
    """
    values = read_settings(name)
    for change in overrides:
        override(values, change)
    return make_recipe(values | {key: value for key, value in settings.items() if value is not None})


def make_recipe(values: Mapping[str, Any]) -> Recipe:
    """Raises RecipeError, naming the key and what would be accepted."""
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        raise explain(error, Recipe, "The recipe") from None
    check(recipe)
    return recipe


def read_settings(name: str | Path) -> dict[str, Any]:
    """What the recipe of this name says, unchecked."""
    path = Path(name)
    try:
        if str(name) in shipped_recipes():
            text = (resources.files(__package__) / "recipes" / f"{name}.toml").read_text("utf-8")
        elif path.suffix == ".toml" and path.is_file():
            text = path.read_text("utf-8-sig")
        else:
            near = difflib.get_close_matches(str(name), shipped_recipes(), 1)
            meant = f"Did you mean {near[0]!r}? " if near else ""
            raise RecipeError(
                f"There is no recipe {str(name)!r}.",
                f"{meant}Shipped: {', '.join(shipped_recipes())}; or give a .toml file.",
            )
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{name} cannot be read ({error}).", "A recipe is a TOML file in UTF-8.") from None
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise RecipeError(f"{name} is not valid TOML: {error}.") from None


def override(values: dict[str, Any], change: str) -> None:
    """Sets what a change like "a.b=value" says."""
    path, equals, text = change.partition("=")
    keys = [key.strip() for key in path.split(".")]
    if not equals or not all(keys):
        raise RecipeError(f"--set {change!r} cannot be read.", "Write it like --set pretrain.steps=200.")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        value = text.strip()
    for key in keys[:-1]:
        values = values.setdefault(key, {})
        if not isinstance(values, dict):
            raise RecipeError(f"--set {change!r}: {key} has no settings of its own.")
    values[keys[-1]] = value


def explain(error: ValidationError, whole: type[BaseModel], what: str) -> RecipeError:
    """The first thing that is wrong with `what`, a file that should be a `whole`, as a sentence that names the key."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        known = _known_keys(whole, first["loc"][:-1])
        near = difflib.get_close_matches(str(first["loc"][-1]), known, 1, 0.5)
        meant = f"Did you mean {near[0]!r}? " if near else ""
        return RecipeError(f"{what} has an unknown key {place!r}.", f"{meant}Known there: {', '.join(known)}.")
    if first["type"] == "missing":
        return RecipeError(f"{what} lacks {place}.")
    reason = first["msg"].removeprefix("Value error, ")
    if not place:
        return RecipeError(f"{what} cannot be used: {reason}.")
    value = "" if isinstance(first["input"], dict) else f" = {_short(first['input'])}"
    return RecipeError(f"{what}'s {place}{value} cannot be used.", f"{reason[0].upper()}{reason[1:]}.")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _known_keys(section: type[BaseModel], path: Sequence[Any]) -> list[str]:
    for key in path:
        annotation: Any = section.model_fields[key].annotation
        kinds = [kind for kind in (annotation, *get_args(annotation)) if isinstance(kind, type)]
        inner = [kind for kind in kinds if issubclass(kind, BaseModel)]
        if not inner:
            return []
        section = inner[0]
    return sorted(section.model_fields)


def check(recipe: Recipe) -> None:
    """What no single key can tell. Raises RecipeError."""
    seconds = recipe.budget_seconds
    if seconds is None:
        for name in recipe.stages:
            if getattr(recipe, name).steps is None:
                raise RecipeError(
                    f"Without a budget {name}.steps must be given.", "Or set a budget, like --budget 10m."
                )
    elif seconds < SHORTEST_BUDGET:
        raise RecipeError(
            f"A budget of {recipe.budget} is too small.", "The shortest is 2m; the recipe `smoke` takes about a minute."
        )
    for name in recipe.stages:
        length = getattr(recipe, name).length
        if length is not None and length > recipe.model.max_seq_len:
            raise RecipeError(
                f"{name}.length = {length} exceeds the context, model.max_seq_len = {recipe.model.max_seq_len}.",
                "Make the one smaller or the other larger.",
            )
        _check_schedule(name, getattr(recipe, name))
    if recipe.pretrain.objective != "next_token":
        _check_objective(recipe)
        return
    sizes = {"d_model": 64, "n_layers": 1} | recipe.model.sizes
    try:
        standard_config(recipe.tokenizer.vocab_size, recipe.model.max_seq_len, **sizes)
    except ModelError as error:
        raise RecipeError(f"The recipe's model is impossible: {error.message}", error.hint) from None
    if recipe.rl.keep.best:
        raise RecipeError(
            "rl.keep.best: reinforcement learning measures nothing held out while it trains.",
            "pretrain.keep.best and sft.keep.best can be set.",
        )
    for name in recipe.rl.environments:
        environment = load_environment(name)
        for level in (recipe.rl.levels or {}).get(name, []):
            if level not in environment.levels:
                raise RecipeError(
                    f"rl.levels: {name} has no level {level}.",
                    f"Choose from {environment.levels[0]} to {environment.levels[-1]}.",
                )
    if recipe.rl.levels is not None and not any(recipe.rl.levels.values()):
        raise RecipeError("rl.levels names no level at all.", "Name at least one, or leave it out to have them probed.")
    if strange := sorted(set(recipe.rl.levels or {}) - set(recipe.rl.environments)):
        raise RecipeError(f"rl.levels names {strange[0]!r}, which is not among rl.environments.")
    if recipe.sft.share + recipe.rl.share + recipe.evaluate.share > 0.8:
        raise RecipeError("The shares of sft, rl and evaluate leave less than a fifth of the budget for pre-training.")


def _check_objective(recipe: Recipe) -> None:
    """What holds where a run ends after pre-training."""
    pretrain, model = recipe.pretrain, recipe.model
    said = f'pretrain.objective = "{pretrain.objective}"'
    for name in ("sft", "rl", "evaluate"):
        if getattr(recipe, name) != getattr(Recipe(), name):
            raise RecipeError(
                f"With {said} a run ends after pre-training, so [{name}] has nothing to say.",
                f'Leave [{name}] out, or take objective = "next_token".',
            )
    for name in ("first_rows", "first_length"):
        if getattr(pretrain, name) is not None:
            raise RecipeError(
                f"pretrain.{name} cannot be used with {said}: its batches do not grow.", f"Leave {name} out."
            )
    if pretrain.objective in LEARNT_POSITIONS and pretrain.length not in (None, model.max_seq_len):
        raise RecipeError(
            f"pretrain.length = {pretrain.length} is not model.max_seq_len = {model.max_seq_len}: with {said} the "
            "model's positions are a learnt table, and rows beyond pretrain.length would learn nothing.",
            "Set the two alike, or leave pretrain.length out.",
        )
    config = config_of(pretrain.objective)
    known = {name for name in signature(config).parameters if name in ModelRecipe.model_fields}
    if strange := sorted(set(model.sizes) - known):
        raise RecipeError(
            f"model.{strange[0]} cannot be set with {said}: all heads of its networks are d_model / n_heads wide.",
            f"Known there: {', '.join(sorted(known))}.",
        )
    try:
        config(recipe.tokenizer.vocab_size, model.max_seq_len, **{"d_model": 64, "n_layers": 1} | model.sizes)
    except ModelError as error:
        raise RecipeError(f"The recipe's model is impossible: {error.message}", error.hint) from None


def _check_schedule(stage: str, recipe: TrainingRecipe) -> None:
    if recipe.schedule == "wsd":
        return
    if recipe.steps is None:
        raise RecipeError(
            f'{stage}.schedule = "{recipe.schedule}" falls from the start, so {stage}.steps must be given.',
            'Give it, or leave the schedule at "wsd", which ends on time whatever the number of steps.',
        )
    if recipe.decay_share is not None:
        raise RecipeError(
            f'{stage}.decay_share says nothing with {stage}.schedule = "{recipe.schedule}".',
            'Leave it out, or leave the schedule at "wsd".',
        )
    if recipe.average == "tail":
        raise RecipeError(
            f'{stage}.average = "tail" with {stage}.schedule = "{recipe.schedule}" would be that of the whole run.',
            'Take "ema", or leave the schedule at "wsd".',
        )
