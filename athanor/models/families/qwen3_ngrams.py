"""Qwen3 with an n-gram memory beside its embedding: Athanor's own, which no other program computes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from athanor.models.config import EmbeddingConfig, ModelConfig
from athanor.models.families import llama, qwen3
from athanor.models.families.family import Family
from athanor.models.families.keys import Keys
from athanor.models.families.weights import Rule, same


def _read(keys: Keys) -> ModelConfig:
    memory = EmbeddingConfig(ngrams=keys.whole("ngrams"))
    return replace(qwen3.FAMILY.read(keys), embedding=memory, family="qwen3_ngrams")


def _write(config: ModelConfig) -> dict[str, Any]:
    return {**qwen3.FAMILY.write(config), "ngrams": config.embedding.ngrams}


def _rules(config: ModelConfig) -> list[Rule]:
    return [*same("embedding.memory.project", "model.ngram_memory.project"), *llama.rules(config)]


FAMILY = Family("qwen3_ngrams", ("Qwen3NGramForCausalLM",), _read, _write, _rules, portable=False)
