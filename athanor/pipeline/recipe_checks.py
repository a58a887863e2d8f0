"""What no single key of a recipe can tell: settings that contradict one another, or ask for what there is not."""

from __future__ import annotations

from inspect import signature

from athanor.base.errors import ModelError, RecipeError
from athanor.environments import load_environment
from athanor.models.config import standard_config
from athanor.models.shapes import CLASSIFIABLE, LEARNT_POSITIONS, config_of
from athanor.pipeline.recipe import SHORTEST_BUDGET, ModelRecipe, Recipe, TrainingRecipe


def check(recipe: Recipe) -> None:
    """What no single key can tell. Raises RecipeError."""
    seconds = recipe.budget_seconds
    if seconds is None:
        for name in recipe.stages:
            if getattr(recipe, name).steps is None:
                raise RecipeError(
                    f"Without a budget {name}.steps must be given.", "Or set a budget, like --budget 10m."
                )
    elif seconds < SHORTEST_BUDGET:
        raise RecipeError(
            f"A budget of {recipe.budget} is too small.", "The shortest is 2m; the recipe `smoke` takes about a minute."
        )
    for name in recipe.stages:
        length = getattr(recipe, name).length
        if length is not None and length > recipe.model.max_seq_len:
            raise RecipeError(
                f"{name}.length = {length} exceeds the context, model.max_seq_len = {recipe.model.max_seq_len}.",
                "Make the one smaller or the other larger.",
            )
        _check_schedule(name, getattr(recipe, name))
    if recipe.corpus.stream is not None:
        _check_stream(recipe)
    _check_experts_and_teacher(recipe)
    if recipe.model.ngrams and (recipe.pretrain.objective != "next_token" or recipe.corpus.stream is not None):
        raise RecipeError(
            "model.ngrams needs next tokens to learn, and text that is on this machine as a whole, to be counted.",
            'Leave it out, or take objective = "next_token" and corpus.sources.',
        )
    if recipe.pretrain.compile == "blocks" and recipe.pretrain.recompute != "none":
        raise RecipeError(
            'pretrain.compile = "blocks" and pretrain.recompute exclude each other.', "Leave one of them out."
        )
    if recipe.pretrain.compile == "blocks" and recipe.pretrain.objective != "next_token":
        raise RecipeError('pretrain.compile = "blocks" needs objective = "next_token".', "Leave it out.")
    if recipe.classify is not None and recipe.pretrain.objective not in CLASSIFIABLE:
        objective = recipe.pretrain.objective
        raise RecipeError(
            f'[classify] fine-tunes masked and denoising models, and pretrain.objective is "{objective}".',
            f"Leave it out, or take one of {', '.join(sorted(CLASSIFIABLE))}.",
        )
    if recipe.pretrain.objective != "next_token":
        _check_objective(recipe)
        return
    sizes = {"d_model": 64, "n_layers": 1} | recipe.model.sizes
    try:
        standard_config(recipe.tokenizer.vocab_size, recipe.model.max_seq_len, **sizes)
    except ModelError as error:
        raise RecipeError(f"The recipe's model is impossible: {error.message}", error.hint) from None
    if recipe.rl.keep.best:
        raise RecipeError(
            "rl.keep.best: reinforcement learning measures nothing held out while it trains.",
            "pretrain.keep.best and sft.keep.best can be set.",
        )
    for name in recipe.rl.environments:
        environment = load_environment(name)
        for level in (recipe.rl.levels or {}).get(name, []):
            if level not in environment.levels:
                raise RecipeError(
                    f"rl.levels: {name} has no level {level}.",
                    f"Choose from {environment.levels[0]} to {environment.levels[-1]}.",
                )
    if recipe.rl.levels is not None and not any(recipe.rl.levels.values()):
        raise RecipeError("rl.levels names no level at all.", "Name at least one, or leave it out to have them probed.")
    if strange := sorted(set(recipe.rl.levels or {}) - set(recipe.rl.environments)):
        raise RecipeError(f"rl.levels names {strange[0]!r}, which is not among rl.environments.")
    if recipe.sft.share + recipe.rl.share + recipe.evaluate.share > 0.8:
        raise RecipeError("The shares of sft, rl and evaluate leave less than a fifth of the budget for pre-training.")


def _check_stream(recipe: Recipe) -> None:
    """What a streamed corpus has decided already."""
    for section in ("corpus", "tokenizer"):
        given, usual = getattr(recipe, section), getattr(Recipe(), section)
        for name in type(given).model_fields:
            if name not in ("stream", "cache_bytes") and getattr(given, name) != getattr(usual, name):
                raise RecipeError(
                    f"{section}.{name} says nothing with corpus.stream: the corpus is made, and its tokenizer with it.",
                    f"Leave {section}.{name} out, or make the corpus again with athanor corpus build and stream.",
                )
    if recipe.pretrain.objective != "next_token":
        raise RecipeError(
            f'pretrain.objective = "{recipe.pretrain.objective}" reads no streamed corpus.',
            'Take objective = "next_token", or give corpus.sources.',
        )


def _check_experts_and_teacher(recipe: Recipe) -> None:
    objective = recipe.pretrain.objective
    if recipe.model.experts and objective != "experts":
        raise RecipeError(
            f"model.{next(iter(recipe.model.experts))} needs experts, and pretrain.objective is {objective!r}.",
            'Take objective = "experts", as the recipe `moe` does.',
        )
    if recipe.pretrain.teacher is not None and objective != "distilled":
        raise RecipeError(
            f"pretrain.teacher says nothing with pretrain.objective = {objective!r}.", 'Take objective = "distilled".'
        )
    if objective == "distilled" and recipe.tokenizer != Recipe().tokenizer:
        raise RecipeError(
            "tokenizer.vocab_size says nothing with a teacher: the student takes the teacher's tokenizer.",
            "Leave it out.",
        )


def _check_objective(recipe: Recipe) -> None:
    """What holds where a run ends after pre-training."""
    pretrain, model = recipe.pretrain, recipe.model
    said = f'pretrain.objective = "{pretrain.objective}"'
    for name in ("sft", "rl", "evaluate"):
        if getattr(recipe, name) != getattr(Recipe(), name):
            raise RecipeError(
                f"With {said} a run ends after pre-training, so [{name}] has nothing to say.",
                f'Leave [{name}] out, or take objective = "next_token".',
            )
    for name in ("first_rows", "first_length"):
        if getattr(pretrain, name) is not None:
            raise RecipeError(
                f"pretrain.{name} cannot be used with {said}: its batches do not grow.", f"Leave {name} out."
            )
    if pretrain.objective in LEARNT_POSITIONS and pretrain.length not in (None, model.max_seq_len):
        raise RecipeError(
            f"pretrain.length = {pretrain.length} is not model.max_seq_len = {model.max_seq_len}: with {said} the "
            "model's positions are a learnt table, and rows beyond pretrain.length would learn nothing.",
            "Set the two alike, or leave pretrain.length out.",
        )
    config = config_of(pretrain.objective)
    known = {name for name in signature(config).parameters if name in ModelRecipe.model_fields}
    if strange := sorted(set(model.sizes) - known):
        raise RecipeError(
            f"model.{strange[0]} cannot be set with {said}: all heads of its networks are d_model / n_heads wide.",
            f"Known there: {', '.join(sorted(known))}.",
        )
    try:
        config(
            recipe.tokenizer.vocab_size,
            model.max_seq_len,
            **{"d_model": 64, "n_layers": 1} | model.sizes | model.experts,
        )
    except ModelError as error:
        raise RecipeError(f"The recipe's model is impossible: {error.message}", error.hint) from None


def _check_schedule(stage: str, recipe: TrainingRecipe) -> None:
    if recipe.schedule == "wsd":
        return
    if recipe.steps is None:
        raise RecipeError(
            f'{stage}.schedule = "{recipe.schedule}" falls from the start, so {stage}.steps must be given.',
            'Give it, or leave the schedule at "wsd", which ends on time whatever the number of steps.',
        )
    if recipe.decay_share is not None:
        raise RecipeError(
            f'{stage}.decay_share says nothing with {stage}.schedule = "{recipe.schedule}".',
            'Leave it out, or leave the schedule at "wsd".',
        )
    if recipe.average == "tail":
        raise RecipeError(
            f'{stage}.average = "tail" with {stage}.schedule = "{recipe.schedule}" would be that of the whole run.',
            'Take "ema", or leave the schedule at "wsd".',
        )
