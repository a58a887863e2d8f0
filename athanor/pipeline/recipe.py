"""Recipes: what a run shall do, section by section. `recipe_files` reads them, `recipe_checks` says which settings
contradict one another.

A setting that is absent is decided by the planner from the budget and the machine; a setting that is given is kept.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from athanor.base.errors import RecipeError
from athanor.corpus.streams import DEFAULT_CACHE_BYTES
from athanor.models.shapes import Balance, Objective

Weight = Annotated[float, Field(ge=0, le=1e6)]
Rate = Annotated[float, Field(gt=0, le=10)]
Size = Annotated[int, Field(gt=0, le=1 << 20)]
Steps = Annotated[int, Field(gt=0, le=10**9)]


_LEAST_CONVERSATION = 64  # places that a short question with its answer takes


_EXPERTS = ("n_experts", "top_k", "balance")


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class CorpusRecipe(_Section):
    """sources: "default", names of packaged sources, or paths of files and folders. weights: by source, how often it is
    read.

    decontaminate: drop what overlaps the packaged test sets; without it no package is needed for a user's own text.
    stream: instead of all these, the address of a corpus that `athanor corpus stream` made; cache_bytes: what of it may
    lie on this machine, where it lies elsewhere.
    """

    sources: list[str] = ["default"]
    held_out_share: float = Field(default=0.02, gt=0, lt=1)
    limit_bytes: int | None = Field(default=None, gt=0, le=10**15)
    weights: dict[str, Weight] = {}
    decontaminate: bool = True
    stream: str | None = Field(default=None, min_length=1, max_length=4096)
    cache_bytes: int = Field(default=DEFAULT_CACHE_BYTES, gt=0, le=10**15)


class TokenizerRecipe(_Section):
    """vocab_size: all ids, control tokens included; a multiple of 64."""

    vocab_size: int = Field(default=8192, ge=512, le=1 << 20, multiple_of=64)


class ModelRecipe(_Section):
    """Sizes of the network; what is absent is planned. ngrams: tokens of the longest context that a memory looks up
    (`models.ngram_memory`), none by default: other programs do not know such models. n_experts, top_k, balance: of a
    mixture of experts, see `models.shapes.experts_config`.
    """

    d_model: Size | None = None
    n_layers: int | None = Field(default=None, gt=0, le=4096)
    n_heads: int | None = Field(default=None, gt=0, le=4096)
    n_kv_heads: int | None = Field(default=None, gt=0, le=4096)
    head_dim: int | None = Field(default=None, gt=0, le=4096)
    d_ff: Size | None = None
    ngrams: int | None = Field(default=None, ge=1, le=16)
    n_experts: int | None = Field(default=None, ge=2, le=1024)
    top_k: int | None = Field(default=None, ge=1, le=1024)
    balance: Balance | None = None
    max_seq_len: int = Field(default=1024, ge=128, le=1 << 20)

    @property
    def sizes(self) -> dict[str, int]:
        """The sizes that are given, by their name in `standard_config`."""
        return {name: value for name, value in self if value is not None and name not in ("max_seq_len", *_EXPERTS)}

    @property
    def experts(self) -> dict[str, Any]:
        """What is given of them, by its name in `experts_config`."""
        return {name: value for name, value in self if value is not None and name in _EXPERTS}


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
    products: Literal["fp32", "bf16"] | None = None
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


class TeacherRecipe(_Section):
    """model: a model folder or the name of a run, whose tokenizer the student takes. The others: see `Distillation`."""

    model: str = Field(min_length=1, max_length=4096)
    direction: Literal["forward", "reverse"] = "forward"
    temperature: float = Field(default=1.0, gt=0, le=100)
    weight: float = Field(default=0.5, gt=0, le=1)


def _named(teacher: Any) -> Any:
    """The section that a teacher's bare name stands for."""
    return {"model": teacher} if isinstance(teacher, str) else teacher


class PretrainRecipe(TrainingRecipe):
    """objective: what is learnt, and with it the kind of network (docs/objectives.md); a run with another one than
    "next_token" ends after pre-training. rows × length: places of a batch. share: part of the budget, at most; the
    other shares come first.

    compile: "blocks" puts torch.compile around each layer; "auto" does so where training is long, there is a compiler,
    and a timed probe says that it pays.

    teacher: of the objective "distilled"; `teacher = "my-run"` is short for `teacher.model = "my-run"`.

    ngram_targets: the next token is learnt together with what n-grams of the whole text say about it; by default where
    the text is on this machine and is not read twice within the first 3 M tokens.

    first_rows, first_length: what a batch begins with, to double until half of the tokens are read; rows are cut into
    shorter ones, so that a batch has the same tokens.
    """

    objective: Objective = "next_token"
    compile: Literal["auto", "none", "blocks"] = "auto"
    teacher: Annotated[TeacherRecipe | None, BeforeValidator(_named)] = None
    ngram_targets: bool | None = None
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

    share: float = Field(default=0.08, gt=0, lt=1)
    held_out_tokens: int | None = Field(default=None, ge=1000, le=10**9)
    problems: int | None = Field(default=None, ge=1, le=10**6)
    samples: int = Field(default=8, ge=8, le=1024)
    per_task: int | None = Field(default=None, ge=1, le=10**6)
    all_text_baseline: bool = True


class ClassifyRecipe(_Section):
    """What a masked or denoising model is fine-tuned to tell of a text, against the same network from scratch.

    label: where documents say it, in their `meta`: "topic" of the packaged Wikipedia summaries, "label" of a user's own
    lines. examples: labelled documents to learn from, all where absent. steps: updates of each training; planned where
    absent. seeds: how often both are trained. share: part of the budget.
    """

    label: str = Field(min_length=1, max_length=64)
    examples: int | None = Field(default=None, ge=2, le=10**7)
    steps: Steps | None = None
    seeds: int = Field(default=3, ge=1, le=100)
    share: float = Field(default=0.25, gt=0, lt=0.9)


def _by_label(classify: Any) -> Any:
    """The section that a bare label stands for."""
    return {"label": classify} if isinstance(classify, str) else classify


class Recipe(_Section):
    """budget: time for the whole job, such as "10m", "90s", "2h", "1d"; absent where every stage has fixed steps.
    precision: of matrix products; weights are fp32 in any case. "auto" is the faster of fp32 and bf16; "fp16" scales
    the loss, for GPUs without bf16. device: where models are trained and measured; "auto" is a GPU where torch has one.
    sharded: where several processes train together, each holds a part of the model
    (FSDP2) instead of a copy (DDP). classify: for masked and denoising models; `classify = "topic"` is short for
    `classify.label = "topic"`.
    """

    budget: str | None = None
    seed: int = Field(default=0, ge=0, lt=1 << 64)
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int | None = Field(default=None, gt=0, le=1024)
    sharded: bool = False
    corpus: CorpusRecipe = CorpusRecipe()
    tokenizer: TokenizerRecipe = TokenizerRecipe()
    model: ModelRecipe = ModelRecipe()
    pretrain: PretrainRecipe = PretrainRecipe()
    sft: SftRecipe = SftRecipe()
    rl: RlRecipe = RlRecipe()
    evaluate: EvaluateRecipe = EvaluateRecipe()
    classify: Annotated[ClassifyRecipe | None, BeforeValidator(_by_label)] = None

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
