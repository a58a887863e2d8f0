"""The sampling settings as options, the same for every verb that lets a model speak."""

from __future__ import annotations

from typing import Annotated, Any

import typer

Temperature = Annotated[float | None, typer.Option(help="0 is greedy; higher is freer. Default: the model's.")]
TopK = Annotated[int | None, typer.Option(help="Draw from the K likeliest tokens; 0: from all.")]
TopP = Annotated[float | None, typer.Option(help="Draw from the likeliest tokens that hold P of the probability.")]
MinP = Annotated[float | None, typer.Option(help="Drop tokens below this share of the likeliest one's probability.")]
RepetitionPenalty = Annotated[float | None, typer.Option(help="Above 1: words already there become less likely.")]
MaxTokens = Annotated[int | None, typer.Option(help="Length of an answer at most.")]
Format = Annotated[str, typer.Option(help="Of the weights: auto (as they are), fp32, bf16, int8 or int4.")]
Speculate = Annotated[
    str,
    typer.Option(help="Guess tokens, for speed alone: lookup (in the text so far), a smaller model, or off."),
]
Cache = Annotated[str, typer.Option(help="Of keys and values: auto, or int8 in half the memory.")]
Seed = Annotated[int | None, typer.Option(help="The same seed gives the same answers.")]


def chosen(**settings: Any) -> dict[str, Any]:
    """Only what the user gave; the rest stays the model's."""
    return {name: value for name, value in settings.items() if value is not None}
