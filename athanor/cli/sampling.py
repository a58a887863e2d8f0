"""The sampling settings as options, the same for every verb that lets a model speak.

An option has the name of its setting in Python and in a file of prompts, with hyphens.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any, get_type_hints

import typer

from athanor.base.errors import AthanorError

Format = Annotated[str, typer.Option(help="Of the weights: auto (as they are), fp32, bf16, int8 or int4.")]
Speculate = Annotated[
    str,
    typer.Option(help="Guess tokens, for speed alone: lookup (in the text so far), a smaller model, or off."),
]
Cache = Annotated[str, typer.Option(help="Of keys and values: auto, or int8 in half the memory.")]

SETTINGS: dict[str, tuple[Any, str]] = {
    "temperature": (float, "0 is greedy; higher is freer. Default: the model's."),
    "top_k": (int, "Draw from the K likeliest tokens; 0: from all."),
    "top_p": (float, "Draw from the likeliest tokens that hold P of the probability."),
    "min_p": (float, "Drop tokens below this share of the likeliest one's probability."),
    "typical_p": (float, "Draw from the tokens nearest to the expected surprise that hold P of the probability."),
    "repetition_penalty": (float, "Above 1: tokens already there become less likely."),
    "presence_penalty": (float, "Taken from the logits of tokens already said."),
    "frequency_penalty": (float, "The same, as often as they were said."),
    "no_repeat_ngram_size": (int, "So many tokens in a row never come twice; 0: they may."),
    "logit_bias": (str, "Add to tokens' logits."),
    "suppress_tokens": (str, "Ids that are never said, besides those of the model's settings."),
    "allowed_tokens": (str, "The only ids that may be said."),
    "max_tokens": (int, "Length of an answer at most."),
    "min_tokens": (int, "Length of an answer at least."),
    "stop": (list[str], "A text that ends the answer and is not part of it; may be given several times."),
    "stop_ids": (str, "Ids that end it, besides the model's own."),
    "seed": (int, "The same seed gives the same answers."),
    "beams": (int, "Above 1: search for the likeliest answers with so many beams, and draw nothing."),
    "length_penalty": (
        float,
        "Above 0 favours long answers in that search: scores are divided by length to this power.",
    ),
    "early_stopping": (
        str,
        "When that search ends: with so many ended answers (true), when no better one is expected (false) or possible "
        "(never).",
    ),
    "n": (int, "Answers to each prompt."),
    "logprobs": (int, "Tell each token's log-probability and the K likeliest tokens beside it."),
    "prompt_logprobs": (bool, "Tell the log-probabilities of the prompt's tokens."),
}
TOLD_IN_JSON = ("logprobs", "prompt_logprobs")
SEVERAL = ("n", *TOLD_IN_JSON)


def with_sampling(*without: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a verb all options of sampling but these; its argument `settings` gets those that the user gave."""
    wanted = [name for name in SETTINGS if name not in without]

    def decorate(verb: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(verb)
        def run(**given: Any) -> None:
            chosen = {name: given.pop(name) for name in wanted}
            verb(**given, settings={n: _read(n, value) for n, value in chosen.items() if value not in (None, [])})

        kinds = get_type_hints(verb, include_extras=True)
        own = [p.replace(annotation=kinds[p.name]) for p in inspect.signature(verb).parameters.values()]
        made = [inspect.Parameter(name, _KEYWORD, default=None, annotation=_option(name)) for name in wanted]
        parameters = [*(p for p in own if p.name != "settings"), *made]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        return run

    return decorate


_KEYWORD = inspect.Parameter.POSITIONAL_OR_KEYWORD


def _option(name: str) -> Any:
    kind, text = SETTINGS[name]
    metavars = {"stop": "TEXT", "logit_bias": "ID=NUMBER,…", "early_stopping": "true|false|never"}
    metavar = metavars.get(name, "ID,…" if kind is str else None)
    return Annotated[kind | None, typer.Option(f"--{name.replace('_', '-')}", metavar=metavar, help=text)]


def _read(name: str, value: Any) -> Any:
    """What an option says, as the setting has it. Raises AthanorError for lists that are none."""
    if name == "stop":
        return tuple(value)
    if name == "early_stopping":
        return {"true": True, "false": False}.get(value, value)
    if SETTINGS[name][0] is not str:
        return value
    parts = [part.strip() for part in value.split(",") if part.strip()]
    try:
        if name == "logit_bias":
            return tuple((int(token), float(bias)) for token, bias in (part.split("=") for part in parts))
        return tuple(int(part) for part in parts)
    except ValueError:
        example = "11=-5,42=2.5" if name == "logit_bias" else "11,42"
        raise AthanorError(f"--{name.replace('_', '-')} {value} cannot be read.", f"Write say {example}.") from None
