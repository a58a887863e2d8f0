"""Problems with exact checkers: the same object serves evaluation, reinforcement learning and fine-tuning data."""

from athanor.environments.base import Environment, Problem, Split, is_held_out
from athanor.environments.registry import ENVIRONMENTS, distinct_held_out, held_out_problems, load_environment, score

__all__ = [
    "ENVIRONMENTS",
    "Environment",
    "Problem",
    "Split",
    "distinct_held_out",
    "held_out_problems",
    "is_held_out",
    "load_environment",
    "score",
]
