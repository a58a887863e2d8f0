"""What each stage has decided before it starts, as checked data: a stage's `plan.json`, and the plan file of a whole
run, which `--plan` repeats.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from athanor.base.errors import RecipeError, RunError
from athanor.base.files import read_json
from athanor.base.run import Stage
from athanor.environments import load_environment
from athanor.models.config import ModelConfig
from athanor.models.precision import Precision
from athanor.models.shapes import Objective
from athanor.pipeline.recipe import Recipe
from athanor.pipeline.recipe_checks import check
from athanor.pipeline.recipe_files import explain
from athanor.training.averaging import AverageKind
from athanor.training.checkpoints import Retention
from athanor.training.compiling import Compile
from athanor.training.optimizers import OptimizerConfig
from athanor.training.recompute import Recompute
from athanor.training.schedules import Growth, ScheduleKind, Turn

PLAN_SCHEMA_VERSION: Literal[3] = 3

Count = Annotated[int, Field(gt=0, le=10**9)]
Rows = Annotated[int, Field(gt=0, le=1 << 20)]


class Plan(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())

    @classmethod
    def freeze(cls, stage: Stage, decide: Callable[[], Self]) -> Self:
        """The stage's plan: decided once, then read from its `plan.json` ever after."""
        stage.freeze("plan.json", lambda: decide().model_dump(mode="json"))
        return cls.of(stage)

    @classmethod
    def of(cls, stage: Stage) -> Self:
        """The frozen plan of a stage that has one."""
        try:
            return cls.model_validate(stage.read("plan.json"))
        except ValidationError as error:
            reason = explain(error, cls, str(stage.folder / "plan.json"))
            raise RunError(
                reason.message, f"Remove {stage.folder} to make the stage again, or start over with --fresh."
            ) from None


class TrainingPlan(Plan):
    """steps: updates, or None to train for `seconds`. turns: where an earlier run began its decay, to be repeated
    whatever the clock says.
    """

    precision: Precision
    length: Annotated[int, Field(ge=16, le=1 << 20)]
    micro_rows: Rows
    steps: Count | None
    seconds: Annotated[float, Field(gt=0)] | None
    optimizer: OptimizerConfig
    warmup: Annotated[int, Field(ge=0)]
    decay_share: Annotated[float, Field(ge=0, lt=1)]
    schedule: ScheduleKind = "wsd"
    final: Annotated[float, Field(ge=0, lt=1)] = 0.0
    average: AverageKind = "none"
    recompute: Recompute = "none"
    compile: Compile = "none"
    clip: Annotated[float, Field(gt=0)]
    checkpoint_every: Count
    evaluate_every: Count
    keep: Retention = Retention()
    turns: tuple[Turn, ...] = ()

    @model_validator(mode="after")
    def _ends(self) -> Self:
        if self.steps is None and self.seconds is None and not self.turns:
            raise ValueError("without steps, seconds or turns the stage would never end")
        if self.schedule != "wsd" and self.steps is None and not self.turns:
            raise ValueError(f"a {self.schedule} schedule needs steps")
        steps = [turn.step for turn in self.turns]
        if steps != sorted(steps) or any(not 0 <= turn.step <= turn.end for turn in self.turns):
            raise ValueError("turns are [step, end] pairs, in order and with step at most end")
        return self


class SupervisedPlan(TrainingPlan):
    """rows × length: places of a batch."""

    rows: Rows


class PretrainPlan(SupervisedPlan):
    """rows_growth, length_growth: of the batches, where they do not have one size from the start. model: of a pair of
    networks the one that `athanor.models.shapes` says. ngram_targets: see `training.soft_targets`.
    """

    objective: Objective = "next_token"
    model: ModelConfig
    expected_tokens: int
    expected_steps: int
    rows_growth: Growth | None = None
    length_growth: Growth | None = None
    ngram_targets: bool = False

    @model_validator(mode="after")
    def _grows(self) -> Self:
        if self.length_growth is not None and self.length_growth.last != self.length:
            raise ValueError(f"length_growth ends at {self.length_growth.last}, length is {self.length}")
        if self.rows_growth is not None and self.rows_growth.last != self.rows:
            raise ValueError(f"rows_growth ends at {self.rows_growth.last}, rows is {self.rows}")
        return self


class RlPlan(TrainingPlan):
    """cells: the (environment, level) pairs learnt from; probed: the pass rates they were chosen by."""

    cells: Annotated[tuple[tuple[str, int], ...], Field(min_length=1)]
    probed: dict[str, float]
    reward: Literal["exact", "partial"]

    @model_validator(mode="after")
    def _exist(self) -> Self:
        for name, level in self.cells:
            if level not in load_environment(name).levels:
                raise ValueError(f"{name} has no level {level}")
        return self


class EvaluationPlan(Plan):
    """What is scored: held-out tokens, problems × samples for pass@k, problems a task for exact match."""

    precision: Precision
    held_out_tokens: Annotated[int, Field(gt=0, le=10**9)]
    problems: Annotated[int, Field(gt=0, le=10**6)]
    samples: Annotated[int, Field(ge=8, le=1024)]
    per_task: Annotated[int, Field(gt=0, le=10**6)]


class StagePlans(Plan):
    """The plans of a run's stages, as far as it came."""

    pretrain: PretrainPlan | None = None
    sft: SupervisedPlan | None = None
    rl: RlPlan | None = None
    control: SupervisedPlan | None = None
    classify: SupervisedPlan | None = None
    evaluate: EvaluationPlan | None = None

    def get(self, stage: str) -> Any:
        return getattr(self, stage, None)


class RunPlan(Plan):
    """runs/NAME/plan.json: the recipe, and what was decided beyond it; together they repeat the run exactly."""

    schema_version: Literal[3] = PLAN_SCHEMA_VERSION
    recipe: Recipe
    stages: StagePlans = StagePlans()

    @model_validator(mode="after")
    def _agree(self) -> Self:
        for name in ("pretrain", "sft", "rl", "control"):
            plan, context = self.stages.get(name), self.recipe.model.max_seq_len
            if plan is not None and plan.length > context:
                raise ValueError(f"stages.{name}.length = {plan.length} exceeds recipe.model.max_seq_len = {context}")
        if self.stages.pretrain is not None:
            made, wanted = self.stages.pretrain.model, self.recipe.pretrain.objective
            if self.stages.pretrain.objective != wanted:
                raise ValueError(
                    f"stages.pretrain.objective = {self.stages.pretrain.objective}, its recipe says {wanted}"
                )
            if made.max_seq_len != self.recipe.model.max_seq_len:
                raise ValueError(
                    f"stages.pretrain.model.max_seq_len = {made.max_seq_len}, its recipe says "
                    f"{self.recipe.model.max_seq_len}"
                )
        return self


def read_run_plan(path: Path) -> RunPlan:
    """Raises RecipeError, naming the key, for a file that is no plan."""
    found = read_json(path)
    if not isinstance(found, dict) or found.get("schema_version") != PLAN_SCHEMA_VERSION:
        raise RecipeError(f"{path} is not a plan of this version.", "A run keeps one in runs/NAME/plan.json.")
    try:
        plan = RunPlan.model_validate(found)
    except ValidationError as error:
        raise explain(error, RunPlan, f"The plan {path}") from None
    check(plan.recipe)
    return plan
