"""Trains transformers' Qwen3 with its Trainer, for `_peers.py`, in the environment of peers/transformers-trainer.txt.

Text is cut into rows of `length` tokens, documents one after the other, as transformers' own language modelling example
does; a row's labels are its tokens.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from _pace import Budget, pace, read_job
from torch.utils.data import Dataset
from transformers import Qwen3Config, Qwen3ForCausalLM, Trainer, TrainerCallback, TrainingArguments, set_seed


class Rows(Dataset):
    def __init__(self, tokens: np.ndarray, length: int) -> None:
        self.rows = tokens[: len(tokens) // length * length].reshape(-1, length)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        row = torch.from_numpy(self.rows[index].astype(np.int64))
        return {"input_ids": row, "labels": row}


def main() -> None:
    job, answers = read_job()
    if job["threads"]:
        torch.set_num_threads(job["threads"])
    set_seed(job["seed"])
    model = Qwen3ForCausalLM(Qwen3Config(**job["model"]))
    if job["weights"] == "bf16":
        model = model.to(torch.bfloat16)
    places = job["rows"] * job["length"]
    arguments = TrainingArguments(
        job["scratch"],
        per_device_train_batch_size=job["micro_rows"],
        gradient_accumulation_steps=job["rows"] // job["micro_rows"],
        max_steps=10**9,
        seed=job["seed"],
        **job["options"],
    )
    steps = pace(job, answers)

    class Paced(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            steps.may_begin(0)

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_training_stop = not steps.may_begin(places)

    class TimedTrainer(Trainer):
        def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
            if not isinstance(steps, Budget):
                return super().create_scheduler(num_training_steps, optimizer)
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda _: steps.factor())
            return self.lr_scheduler

    text = Rows(np.load(job["tokens"], mmap_mode="r"), job["length"])
    TimedTrainer(model, arguments, train_dataset=text, callbacks=[Paced()]).train()
    model.to(torch.float32).save_pretrained(job["out"])


main()
