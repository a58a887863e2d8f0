"""Puts the report card together from what the stages left in their `stage.json`, and writes it; and the
short report of a run that ends after pre-training.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import athanor
from athanor.base.files import write_json, write_text
from athanor.base.progress import quantity, say
from athanor.base.run import Stage
from athanor.evaluation.objectives import Score
from athanor.evaluation.report import write_report
from athanor.models.build import count_parameters
from athanor.models.config import MlpConfig, ModelConfig
from athanor.models.position_config import RopeConfig
from athanor.pipeline.life import Life
from athanor.pipeline.plans import PretrainPlan

REPORT_SCHEMA_VERSION = 1
_TRAINED = ("pretrain", "sft", "rl", "control")


def report_card(life: Life, evaluation: Stage) -> dict[str, Any]:
    """The report as a dictionary; also written as report.json, report.md and report.html into the run folder."""
    stages = life.run.stages
    measured = {name: evaluation.read(f"{name}.json") for name in ("text", "exact_match", "pass_rates", "samples")}
    report = {
        "schema_version": REPORT_SCHEMA_VERSION,
        "athanor": athanor.__version__,
        "name": life.run.root.name,
        "seed": life.seed,
        "recipe": life.recipe.model_dump(mode="json"),
        "machine": life.machine.as_dict(),
        "plan": _plan(stages),
        "model": _model(stages["pretrain"]),
        "stages": {name: _work(stage) for name, stage in stages.items()},
        **measured["text"],
        "sft": {
            "conversations": stages["sft"].metrics["conversations"],
            **{key: measured["exact_match"][key] for key in ("stop_rate", "overall", "exact_match")},
        },
        "rl": measured["pass_rates"],
        "samples": measured["samples"],
        "tokenizer": _tokenizer(stages["tokenizer"]),
        "corpus": _corpus(stages["corpus"]),
        "lineage": _lineage(stages),
        "timing": _timing(life),
    }
    write_report(report, life.run.root)
    say(f"The report card is {life.run.root / 'report.html'}.")
    return report


def objective_report(life: Life, pretrain: Stage, classify: Stage | None) -> dict[str, Any]:
    """The report of a run that ends after pre-training; also written as report.json and report.md."""
    plan, stages = PretrainPlan.of(pretrain), life.run.stages
    report = {
        "schema_version": REPORT_SCHEMA_VERSION,
        "athanor": athanor.__version__,
        "name": life.run.root.name,
        "seed": life.seed,
        "recipe": life.recipe.model_dump(mode="json"),
        "machine": life.machine.as_dict(),
        "plan": pretrain.read("plan.json"),
        "objective": plan.objective,
        "family": "t5" if plan.objective in ("spans", "ul2") else plan.model.family,
        "scores": [*pretrain.metrics["scores"], *(classify.metrics["scores"] if classify else [])],
        "stages": {name: _work(stage) for name, stage in stages.items()},
        "tokenizer": _tokenizer(stages["tokenizer"]),
        "corpus": _corpus(stages["corpus"]),
        "lineage": _lineage(stages),
        "timing": _timing(life),
    }
    write_json(life.run.root / "report.json", report)
    write_text(life.run.root / "report.md", _markdown(report))
    return report


def _markdown(report: Mapping[str, Any]) -> str:
    """What was made, and what it is worth."""
    rows, work = [], report["stages"]["pretrain"]
    for score in (Score(**values) for values in report["scores"]):
        low, high = score.gain
        rows.append(
            f"| {score.name} | {score.value:.3f} {score.unit} | {score.baseline:.3f} | {low:.3f} to {high:.3f} | "
            f"{score.n:,} |"
        )
    return "\n".join([
        f"# {report['name']}",
        "",
        f"{quantity(work['parameters'])} parameters of the family {report['family']}, pre-trained on the objective "
        f"`{report['objective']}` in {work['steps']:,} steps.",
        "",
        "| held out | value | baseline | better by (95 % interval) | n |",
        "|---|---|---|---|---|",
        *rows,
        "",
    ])  # fmt: skip


def _lineage(stages: Mapping[str, Stage]) -> dict[str, Any]:
    return {
        name: {
            "fingerprint": stage.fingerprint,
            "inputs": stage.inputs,
            "outputs": {path: output["sha256"] for path, output in stage.record["outputs"].items()},
        }
        for name, stage in stages.items()
    }


def _plan(stages: Mapping[str, Stage]) -> dict[str, Any]:
    plans = {name: stages[name].read("plan.json") for name in _TRAINED}
    del plans["pretrain"]["model"]  # stands beside them
    config = PretrainPlan.of(stages["pretrain"]).model
    return {"precision": plans["pretrain"]["precision"], "model": _sizes(config), **plans}


def _sizes(config: ModelConfig) -> dict[str, Any]:
    attention, mlp = config.layers[0].attention, config.layers[0].mlp
    return {
        "d_model": config.d_model,
        "n_layers": config.n_layers,
        "n_heads": attention.n_heads,
        "n_kv_heads": attention.n_kv_heads,
        "head_dim": attention.key_dim,
        "d_ff": mlp.d_ff if isinstance(mlp, MlpConfig) else mlp.expert.d_ff,
        "max_seq_len": config.max_seq_len,
        "rope_theta": attention.position.theta if isinstance(attention.position, RopeConfig) else None,
    }


def _work(stage: Stage) -> dict[str, Any]:
    keys = ("tokens", "flops", "parameters", "steps", "skipped_steps", "spike_steps")  # absent where nothing is trained
    return {key: stage.metrics[key] for key in keys if key in stage.metrics}


def _model(pretrain: Stage) -> dict[str, Any]:
    config = PretrainPlan.of(pretrain).model
    return {
        **_sizes(config),
        "vocab_size": config.vocab_size,
        "parameters": count_parameters(config),
        "matrix_parameters": config.matrix_parameters,
    }


def _tokenizer(stage: Stage) -> dict[str, Any]:
    languages, vocabulary = stage.metrics["languages"], stage.metrics["vocabulary"]
    return {
        "vocab_size": vocabulary["size"],
        "bytes_per_token": {name: values["bytes_per_token"] for name, values in languages.items()},
        "tokens_per_character": {name: values["tokens_per_character"] for name, values in languages.items()},
        "unused_share": vocabulary["unused_share"],
    }


def _timing(life: Life) -> dict[str, Any]:
    stages, keys = {}, ("seconds", "tokens_per_second", "share_of_peak", "incidents")
    for name, stage in life.run.stages.items():
        timing = stage.record["timing"]
        stages[name] = {key: timing.get(key) for key in keys}
    return {
        "seconds": life.seconds,
        "budget_seconds": life.recipe.budget_seconds,
        "peak_memory_bytes": max(stage.record["timing"]["peak_memory_bytes"] for stage in life.run.stages.values()),
        "rates": life.rates.as_dict(),
        "stages": stages,
    }


def _corpus(stage: Stage) -> dict[str, Any]:
    from athanor.corpus.packages import SOURCES

    licences = {source.name: source.licence for source in SOURCES}
    metrics = stage.metrics
    by_source: dict[str, dict[str, Any]] = {}
    for entry in metrics["sources"]:
        source = by_source.setdefault(
            entry["source"],
            {
                "documents": 0,
                "bytes": 0,
                "dropped": 0,
                "language": entry["language"],
                "licence": licences.get(entry["source"], "your own"),
            },
        )
        source["documents"] += entry["training"]["documents"]
        source["bytes"] += entry["training"]["bytes"]
        source["dropped"] += sum(count["documents"] for count in entry["dropped"].values())
        if entry["language"] not in source["language"].split(", "):
            source["language"] += f", {entry['language']}"
    totals = {kind: sum(e[kind]["documents"] for e in metrics["sources"]) for kind in ("training", "held_out")}
    dropped: dict[str, int] = {}
    for entry in metrics["sources"]:
        for rule, count in entry["dropped"].items():
            dropped[rule] = dropped.get(rule, 0) + count["documents"]
    return {
        "documents": {"kept": totals["training"], "heldout": totals["held_out"], "dropped": sum(dropped.values())},
        "bytes": {
            "in": sum(e["read"]["bytes"] for e in metrics["sources"]),
            "kept": sum(e["training"]["bytes"] for e in metrics["sources"]),
        },
        "dropped_by_rule": dict(sorted(dropped.items())),
        "by_source": by_source,
    }
