"""Trains LitGPT's model with its pre-training, for `_peers.py`, in the environment of peers/litgpt.txt.

`litgpt.pretrain.setup` is called as the command does. Three of its names are replaced: the iterator over batches, which
here also watches the time; the schedule, where training has a budget of time; and what is saved, which here is a folder
of transformers' Qwen3. TORCHDYNAMO_DISABLE=1 in the environment leaves out the compiling that it always does.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import litgpt.pretrain as pretrain
import numpy as np
import torch
from _pace import Budget, pace, read_job
from litgpt.args import EvalArgs, TrainArgs
from litgpt.config import Config
from litgpt.data import DataModule
from litgpt.scripts.convert_lit_checkpoint import copy_weights_qwen_3
from litgpt.utils import CycleIterator
from safetensors.torch import save_file
from torch.utils.data import DataLoader, Dataset


class Rows(Dataset):
    """Rows of `length` tokens and the one that follows, documents one after the other."""

    def __init__(self, tokens: np.ndarray, length: int) -> None:
        self.tokens, self.length = tokens, length

    def __len__(self) -> int:
        return (len(self.tokens) - 1) // self.length

    def __getitem__(self, index: int) -> torch.Tensor:
        start = index * self.length
        return torch.from_numpy(self.tokens[start : start + self.length + 1].astype(np.int64))


class Text(DataModule):
    def __init__(self, tokens: np.ndarray) -> None:
        super().__init__()
        self.tokens = tokens

    def connect(self, tokenizer: Any = None, batch_size: int = 1, max_seq_length: int = -1) -> None:
        self.batch_size, self.rows = batch_size, Rows(self.tokens, max_seq_length)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.rows, self.batch_size, shuffle=True, drop_last=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.rows, self.batch_size)


def config_of(model: dict[str, Any], length: int) -> Config:
    """LitGPT's description of a Qwen3 that transformers' configuration describes."""
    return Config(
        name="Qwen3-custom",
        block_size=length,
        vocab_size=model["vocab_size"],
        padded_vocab_size=model["vocab_size"],
        n_layer=model["num_hidden_layers"],
        n_embd=model["hidden_size"],
        n_head=model["num_attention_heads"],
        n_query_groups=model["num_key_value_heads"],
        head_size=model["head_dim"],
        intermediate_size=model["intermediate_size"],
        rope_base=int(model["rope_theta"]),
        norm_eps=model["rms_norm_eps"],
        norm_class_name="RMSNorm",
        mlp_class_name="LLaMAMLP",
        rotary_percentage=1.0,
        parallel_residual=False,
        bias=False,
        norm_qk=True,
    )


def save(model: torch.nn.Module, settings: dict[str, Any], out: Path) -> None:
    weights = {name.replace("_orig_mod.", ""): tensor for name, tensor in model.state_dict().items()}
    theirs: dict[str, torch.Tensor] = {}
    copy_weights_qwen_3(config_of(settings, 1), theirs, weights, untie_weights=settings["tie_word_embeddings"])
    out.mkdir(parents=True)
    save_file({name: tensor.float().contiguous() for name, tensor in theirs.items()}, out / "model.safetensors")
    (out / "config.json").write_text(json.dumps(settings))


def main() -> None:
    job, answers = read_job()
    if job["threads"]:
        torch.set_num_threads(job["threads"])
    accumulated, places = job["rows"] // job["micro_rows"], job["rows"] * job["length"]
    steps = pace(job, answers)

    class Paced(CycleIterator):
        taken = 0

        def __next__(self) -> torch.Tensor:
            if self.taken % accumulated == 0 and not steps.may_begin(places if self.taken else 0):
                raise StopIteration
            self.taken += 1
            return super().__next__()

    def timed_rate(rate: float, *_: Any) -> float:
        assert isinstance(steps, Budget)
        return rate * steps.factor()

    pretrain.CycleIterator = Paced
    pretrain.save_checkpoint = lambda fabric, state, *_: save(state["model"], job["model"], Path(job["out"]))
    if isinstance(steps, Budget):
        pretrain.get_lr = timed_rate
    train = TrainArgs(
        global_batch_size=job["rows"],
        micro_batch_size=job["micro_rows"],
        max_tokens=int(3e12),
        save_interval=10**9,  # at the end alone
        max_norm=1.0,
        min_lr=4e-5,
        lr_warmup_steps=2000,
        tie_embeddings=job["model"]["tie_word_embeddings"],
    )
    pretrain.setup(
        "",
        model_config=config_of(job["model"], job["length"]),
        out_dir=Path(job["scratch"]),
        data=Text(np.load(job["tokens"], mmap_mode="r")),
        train=train,
        eval=EvalArgs(interval=10**9, final_validation=False),
        logger_name="csv",
        seed=job["seed"],
        **job["options"],
    )


main()
