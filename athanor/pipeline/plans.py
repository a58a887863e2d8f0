"""What each stage has decided before it starts, as checked data: a stage's `plan.json`, and the plan file of a whole
run, which `--plan` repeats.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from athanor.base.errors import RecipeError, RunError
from athanor.base.files import read_json
from athanor.base.run import Stage
from athanor.models.config import ModelConfig
from athanor.pipeline.recipe import Recipe, explain
from athanor.training.optimizers import OptimizerConfig
from athanor.training.schedules import Turn

PLAN_SCHEMA_VERSION: Literal[2] = 2

Count = Annotated[int, Field(gt=0)]


class Plan(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())

    @classmethod
    def freeze(cls, stage: Stage, decide: Callable[[], Self]) -> Self:
        """The stage's plan: decided once, then read from its `plan.json` ever after."""
        found = stage.freeze("plan.json", lambda: decide().model_dump(mode="json"))
        try:
            return cls.model_validate(found)
        except ValidationError:
            raise RunError(
                f"{stage.folder / 'plan.json'} is not the plan of this stage.", "Start over with --fresh."
            ) from None

    @classmethod
    def of(cls, stage: Stage) -> Self:
        """The frozen plan of a stage that has one."""
        return cls.model_validate(read_json(stage.folder / "plan.json"))


class TrainingPlan(Plan):
    """steps: updates, or None to train for `seconds`. turns: where an earlier run began its decay, to be repeated
    whatever the clock says. rows: of a batch; None where the batches are as large as their rollouts.
    """

    precision: Literal["fp32", "bf16"]
    rows: Count | None
    length: Count
    micro_rows: Count
    steps: Count | None
    seconds: Annotated[float, Field(gt=0)] | None
    optimizer: OptimizerConfig
    warmup: Annotated[int, Field(ge=0)]
    decay_share: Annotated[float, Field(ge=0, lt=1)]
    clip: Annotated[float, Field(gt=0)]
    checkpoint_every: Count
    evaluate_every: Count
    turns: tuple[Turn, ...] = ()


class PretrainPlan(TrainingPlan):
    model: ModelConfig
    expected_tokens: int
    expected_steps: int


class RlPlan(TrainingPlan):
    """cells: the (environment, level) pairs learnt from; probed: the pass rates they were chosen by."""

    cells: tuple[tuple[str, int], ...]
    probed: dict[str, float]
    reward: Literal["exact", "partial"]


class EvaluationPlan(Plan):
    """What is scored: held-out tokens, problems × samples for pass@k, problems a task for exact match."""

    held_out_tokens: Count
    problems: Count
    samples: Count
    per_task: Count


class StagePlans(Plan):
    """The plans of a run's stages, as far as it came."""

    pretrain: PretrainPlan | None = None
    sft: TrainingPlan | None = None
    rl: RlPlan | None = None
    control: TrainingPlan | None = None
    evaluate: EvaluationPlan | None = None

    def get(self, stage: str) -> Any:
        return getattr(self, stage, None)


class RunPlan(Plan):
    """runs/NAME/plan.json: the recipe, and what was decided beyond it; together they repeat the run exactly."""

    schema_version: Literal[2] = PLAN_SCHEMA_VERSION
    recipe: Recipe
    stages: StagePlans = StagePlans()


def read_run_plan(path: Path) -> RunPlan:
    """Raises RecipeError, naming the key, for a file that is no plan."""
    found = read_json(path)
    if not isinstance(found, dict) or found.get("schema_version") != PLAN_SCHEMA_VERSION:
        raise RecipeError(f"{path} is not a plan of this version.", "A run keeps one in runs/NAME/plan.json.")
    try:
        return RunPlan.model_validate(found)
    except ValidationError as error:
        raise explain(error, RunPlan, f"The plan {path}") from None
