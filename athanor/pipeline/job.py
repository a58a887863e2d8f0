"""`athanor run`: the stages of a model's life, one after the other, within the time given.

Each stage is a function of a `Life`, which stands in `data_stages`, `training_stages` or `evaluation_stage`; this
module opens the run and puts the report together.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import athanor
from athanor.alignment.conversations import check_own_conversations, check_weights
from athanor.base.machine import describe
from athanor.base.progress import say
from athanor.base.run import Run
from athanor.models.precision import check_precision
from athanor.pipeline.calibration import calibrate, use_threads
from athanor.pipeline.classify_stage import check_labels, classify_stage
from athanor.pipeline.data_stages import data_stages, fetch_sources
from athanor.pipeline.evaluation_stage import evaluate_stage
from athanor.pipeline.folders import MODEL_STAGES
from athanor.pipeline.life import Life
from athanor.pipeline.objective_stage import objective_stage
from athanor.pipeline.planning import expectation
from athanor.pipeline.plans import RunPlan
from athanor.pipeline.recipe import Recipe
from athanor.pipeline.reporting import objective_report, report_card
from athanor.pipeline.stream_stages import with_stream
from athanor.pipeline.teachers import with_teacher
from athanor.pipeline.together import follow
from athanor.pipeline.training_stages import control_stage, pretrain_stage, rl_stage, sft_stage
from athanor.training.parallel import Group, connected


def live(
    recipe: Recipe, root: Path, *, fresh: bool = False, repeated: RunPlan | None = None, made_from: str | None = None
) -> dict[str, Any] | None:
    """Carries out the whole recipe in the run folder `root` and returns the report.

    made_from: the recipe's name, for lists of runs. repeated: another run's plan, to be followed wherever it
    decides; its recipe is the one to give. Started by a launcher of many processes, the first does everything, and
    the others, which return None, train with it.
    """
    with connected(recipe.device) as group:
        use_threads(recipe, group.local_size)
        if not group.is_first:
            follow(group)
            return None
        try:
            return _live(recipe, root, fresh, repeated, made_from, group)
        finally:
            group.tell(None)


def _live(
    recipe: Recipe, root: Path, fresh: bool, repeated: RunPlan | None, made_from: str | None, group: Group
) -> dict[str, Any]:
    check_weights(recipe.sft.weights or {})
    fetch_sources(recipe)
    recipe = with_teacher(with_stream(recipe))
    if "sft" in recipe.stages:
        check_own_conversations(recipe.sft.sources)
    with Run(
        root, recipe.model_dump(mode="json"), athanor.__version__, MODEL_STAGES, fresh=fresh, made_from=made_from
    ) as run:
        if recipe.precision != "auto":
            check_precision(recipe.precision, group.device)
        rates, speed, seconds = calibrate(recipe, root, group.device)
        together = speed and speed.times(group.size)  # each process is taken to train as fast as this one
        life = Life(run, recipe, describe(), rates, together, seconds, repeated, group)
        if group.size > 1:
            say(f"{group.size} processes pre-train and fine-tune together; the first does everything else.")
        if repeated:
            say("Repeating a plan: sizes, steps and turns are those of the run that it comes from.")
        elif life.speed:
            say(expectation(life))
        tokenizer, shards = data_stages(life)
        if recipe.pretrain.objective != "next_token":
            if recipe.classify is not None:
                check_labels(life, recipe.classify.label)
            pretrain = objective_stage(life, tokenizer, shards)
            classify = None if recipe.classify is None else classify_stage(life, recipe.classify, tokenizer, pretrain)
            return objective_report(life, pretrain, classify)
        base = pretrain_stage(life, tokenizer, shards)
        sft = sft_stage(life, tokenizer, base)
        rl = rl_stage(life, tokenizer, sft)
        control = control_stage(life, tokenizer, sft, rl)
        evaluation = evaluate_stage(life, tokenizer, shards, base, sft, rl, control)
        return report_card(life, evaluation)
