"""How processes other than the first come to train along.

For a stage that is trained together the first process tells the others a `Task`. From it every process makes the same
model and the same stream of batches.
"""

from __future__ import annotations

from athanor.pipeline.parts import Parts, Task, parts_of
from athanor.pipeline.plans import TrainingPlan
from athanor.training.loop import LoopConfig, Trainer
from athanor.training.parallel import Group
from athanor.training.schedules import Schedule


def parts_for_all(task: Task, group: Group) -> Parts:
    """The task's parts in the first process; the others are told, and make them meanwhile."""
    group.tell(task.model_dump(mode="json"))
    return parts_of(task, group)


def follow(group: Group) -> None:
    """Trains along with the first process until it has nothing more to train together."""
    while (message := group.hear()) is not None:
        _train_along(Task.model_validate(message), group)


def _train_along(task: Task, group: Group) -> None:
    parts = parts_of(task, group)
    trainer = Trainer(
        parts.model,
        parts.learnt.loss,
        parts.source,
        loop_config(task.plan),
        task.folder,
        remaining=lambda: 0.0,  # the first process's clock decides
        evaluate=parts.preview,
        after_step=parts.learnt.after_step,
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
