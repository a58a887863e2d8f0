"""A checkpoint as a model: what a stage's training had when it wrote it, in a folder like the one that it ends with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn

import athanor
from athanor.base.errors import ModelError, RunError
from athanor.base.files import read_json
from athanor.models.build import build
from athanor.models.folder import load_decoder
from athanor.pipeline.objective_stage import save_with_tokenizer
from athanor.pipeline.plans import PretrainPlan
from athanor.pipeline.stage_batches import give_memory, open_text, pretraining_batches
from athanor.pipeline.training_stages import save_decoder
from athanor.tokenizer import Tokenizer
from athanor.training.checkpoints import Checkpoint, checkpoint_at
from athanor.training.objectives import Electra
from athanor.training.pretraining import OBJECTIVES, Vocabulary


def write_checkpoint_model(path: Path, folder: Path) -> None:
    """path: RUN/STAGE/checkpoints/step-N, of a stage that trains. Where the weights are being averaged, the average is
    written, as the stage itself would have it in the end. Raises ModelError for a place or a checkpoint that is not
    whole.
    """
    checkpoint, stage = checkpoint_at(path), path.resolve().parents[1]
    run = stage.parent
    try:
        tokenizer = Tokenizer.load(run / "tokenizer" / "model")
        plan = PretrainPlan.model_validate(read_json(run / "pretrain" / "plan.json"))
    except (RunError, OSError, ValidationError) as error:
        raise ModelError(f"{path} is no checkpoint of a whole run ({str(error).splitlines()[0]}).") from None
    step = int(checkpoint.numbers["step"])
    lineage = {"made_by": f"athanor {athanor.__version__}", "run": run.name, "stage": stage.name, "step": step}
    if stage.name != "pretrain":
        model: nn.Module = load_decoder(run / "pretrain" / "model")
    elif plan.objective == "next_token":
        model = build(plan.model, 0)
        if plan.model.embedding.ngrams:
            give_memory(model, pretraining_batches(plan, open_text(run / "shards"), 0))
    else:
        model = OBJECTIVES[plan.objective].new(plan.model, Vocabulary(tokenizer).special, 0)
    _fill(model, checkpoint)
    kept: Any = model.discriminator if isinstance(model, Electra) else model
    if stage.name == "pretrain" and plan.objective != "next_token":
        save_with_tokenizer(folder, kept, tokenizer, plan, lineage)
    else:
        save_decoder(folder, kept, tokenizer, lineage)


@torch.no_grad()
def _fill(model: nn.Module, checkpoint: Checkpoint) -> None:
    tensors = checkpoint.tensors()
    average = {name.removeprefix("average."): value for name, value in tensors.items() if name.startswith("average.")}
    averaged = int(average.pop("count", torch.zeros(()))) > 0
    weights = {name.removeprefix("model."): value for name, value in tensors.items() if name.startswith("model.")}
    try:
        model.load_state_dict(weights | average if averaged else weights)
    except RuntimeError as error:
        raise ModelError(f"{checkpoint.path} belongs to another model ({str(error).splitlines()[0]}).") from None
