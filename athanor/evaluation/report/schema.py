"""The schema of `report.json`, documented key by key in docs/report.md, as pydantic models.

A report is checked against it before anything is written. A key may be null only where the model says so: null is "not
measured", and every page says that in words. `recipe` and the parts of `plan` are free-form: they are what the user and
the planner decided.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

SCHEMA_VERSION = 1

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
Amount = Annotated[float, Field(ge=0)]
Interval = tuple[float, float]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())


class Proportion(_Part):
    """A share of `n` trials with its 95 % interval."""

    value: Share
    ci95: Interval
    n: Count


class MachinePart(_Part):
    system: str
    processor: str
    cores: Count
    memory: Count
    features: tuple[str, ...]
    accelerator: str | None
    accelerator_memory: Count
    python: str
    torch: str


class PlanPart(_Part):
    precision: str
    model: dict[str, Any]
    pretrain: dict[str, Any]
    sft: dict[str, Any]
    rl: dict[str, Any]
    control: dict[str, Any]


class Rates(_Part):
    fp32: Amount
    bf16: Amount
    read: Amount


class Incidents(_Part):
    resumed: Count
    damaged_checkpoints: Count
    missed_checkpoints: Count


class StageTiming(_Part):
    seconds: Amount
    tokens_per_second: Amount | None
    share_of_peak: Amount | None
    incidents: Incidents | None = None


class Timing(_Part):
    seconds: Amount
    budget_seconds: Amount | None
    peak_memory_bytes: Count
    rates: Rates
    stages: dict[str, StageTiming]


class StageWork(_Part):
    """What a stage went through; the stages that train have all of it."""

    tokens: Count | None = None
    flops: Amount | None = None
    parameters: Count | None = None
    steps: Count | None = None
    skipped_steps: Count | None = None
    spike_steps: Count | None = None


class ModelPart(_Part):
    parameters: Count
    matrix_parameters: Count
    d_model: Count
    n_layers: Count
    n_heads: Count
    n_kv_heads: Count
    head_dim: Count
    d_ff: Count
    vocab_size: Count
    max_seq_len: Count
    rope_theta: Amount


class ByStage(_Part):
    base: Amount | None
    sft: Amount | None
    rl: Amount | None


class HeldOut(ByStage):
    by_source: dict[str, ByStage]
    by_language: dict[str, ByStage]
    tokens: Count
    bytes: Count


class Baselines(_Part):
    kneser_ney_same_tokens: Amount | None
    kneser_ney_all_text: Amount | None
    same_tokens: Count | None
    all_text_tokens: Count | None


class ConversationCounts(_Part):
    """What was trained on, by task; what was not: too long for a row, and lines of the user's files by reason."""

    by_task: dict[str, Count]
    too_long: Count
    skipped: dict[str, Count]


class FineTuning(_Part):
    conversations: ConversationCounts
    stop_rate: Proportion
    overall: dict[str, Proportion]
    exact_match: dict[str, dict[str, Proportion]]


class Differences(_Part):
    after_minus_before: Interval | None
    after_minus_control: Interval | None


class PassAtK(_Part):
    before: Share | None
    after: Share | None
    control: Share | None
    difference_ci95: Differences


class TaskRewards(_Part):
    before: Share | None
    after: Share | None
    control: Share | None
    n: Count


class Reinforcement(_Part):
    pass_at_1: PassAtK
    pass_at_8: PassAtK
    problems: Count
    samples: Count
    by_task: dict[str, TaskRewards]


class CompletionSample(_Part):
    language: str
    stage: str
    prompt: str
    text: str


class ChatMessage(_Part):
    role: str
    content: str


class ChatSample(_Part):
    language: str
    stage: str
    messages: tuple[ChatMessage, ...]


class Samples(_Part):
    completions: tuple[CompletionSample, ...]
    chats: tuple[ChatSample, ...]


class TokenizerPart(_Part):
    vocab_size: Count
    bytes_per_token: dict[str, Amount | None]
    tokens_per_character: dict[str, Amount | None]
    unused_share: Share | None


class DocumentCounts(_Part):
    kept: Count
    dropped: Count
    heldout: Count


class ByteCounts(BaseModel):
    model_config = _Part.model_config | ConfigDict(populate_by_name=False)

    read: Count = Field(alias="in")
    kept: Count


class SourceCounts(_Part):
    documents: Count
    bytes: Count
    dropped: Count
    language: str
    licence: str


class CorpusPart(_Part):
    documents: DocumentCounts
    bytes: ByteCounts
    dropped_by_rule: dict[str, Count]
    by_source: dict[str, SourceCounts]


class StageLineage(_Part):
    fingerprint: str
    inputs: dict[str, Any]
    outputs: dict[str, str]


class Report(_Part):
    """`report.json`. Everything that depends on the clock is under `timing`."""

    schema_version: Annotated[int, Field(ge=SCHEMA_VERSION, le=SCHEMA_VERSION)]
    name: str
    seed: int
    recipe: dict[str, Any]
    athanor: str
    machine: MachinePart
    plan: PlanPart
    timing: Timing
    stages: dict[str, StageWork]
    model: ModelPart
    heldout_bits_per_byte: HeldOut | None
    baselines: Baselines
    sft: FineTuning | None
    rl: Reinforcement | None
    samples: Samples
    tokenizer: TokenizerPart
    corpus: CorpusPart
    lineage: dict[str, StageLineage]


def parse_report(report: Mapping[str, Any]) -> tuple[Report | None, list[str]]:
    """The checked report and no problems, or None and what is wrong, one line a key."""
    try:
        return Report.model_validate_json(json.dumps(report)), []
    except ValidationError as error:
        return None, [_problem(details) for details in error.errors(include_url=False, include_context=False)]
    except (TypeError, ValueError) as error:
        return None, [f"the report is not plain JSON data: {error}"]


def check_report(report: Mapping[str, Any]) -> list[str]:
    """What is missing or wrong, one line a key ("rl.pass_at_1.after: Field required"); empty when all is well."""
    return parse_report(report)[1]


def not_measured(report: Mapping[str, Any]) -> list[str]:
    """The keys that are null where a complete run has a figure, sorted: "rl", "baselines.kneser_ney_all_text".

    Left out are those that a complete run may lack: a budget, an accelerator, the speed of a stage that does not train.
    """
    free = ("recipe", "plan", "lineage", "machine", "timing")
    return sorted(path for key, value in report.items() if key not in free for path in _nulls(key, value))


def _nulls(path: str, value: Any) -> Iterator[str]:
    if value is None:
        yield path
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _nulls(f"{path}.{key}", inner)


def _problem(details: Mapping[str, Any]) -> str:
    where = ".".join(str(step) for step in details["loc"]) or "report"
    return f"{where}: {details['msg']}"
