"""Where a run keeps what: the stages in their order and the files they leave."""

from __future__ import annotations

STAGES = ("corpus", "tokenizer", "shards", "pretrain", "sft", "rl", "control", "evaluate")
"""In the order of work; a user's MODEL is the last of MODEL_STAGES that is finished."""
MODEL_STAGES = ("pretrain", "sft", "rl")
