"""The teacher of a run that distils: a model that was made before, whose tokenizer the student takes."""

from __future__ import annotations

from pathlib import Path

from athanor.base.errors import AthanorError, RecipeError
from athanor.engine.locate import find_model
from athanor.models.folder import load_decoder
from athanor.pipeline.recipe import Recipe, TeacherRecipe
from athanor.tokenizer import Tokenizer
from athanor.training.objectives import Distillation


def with_teacher(recipe: Recipe) -> Recipe:
    """The recipe with the vocabulary of its teacher, where it has one. Raises AthanorError for one that cannot teach,
    or where there should be one.
    """
    if recipe.pretrain.objective == "distilled":
        _teacher(recipe)
    tokenizer = teachers_tokenizer(recipe)
    if tokenizer is None:
        return recipe
    settings = recipe.tokenizer.model_copy(update={"vocab_size": tokenizer.vocab_size})
    return recipe.model_copy(update={"tokenizer": settings})


def teacher_folder(recipe: Recipe) -> Path:
    folder = find_model(_teacher(recipe).model)
    if not (folder / "model.safetensors").is_file():
        raise RecipeError(f"pretrain.teacher: {folder} has no model.safetensors.", "Name a run or a model folder.")
    return folder


def teachers_tokenizer(recipe: Recipe) -> Tokenizer | None:
    """None without a teacher."""
    if recipe.pretrain.teacher is None:
        return None
    folder = teacher_folder(recipe)
    try:
        return Tokenizer.load(folder)
    except AthanorError as error:
        raise RecipeError(
            f"pretrain.teacher: the tokenizer of {folder} is none that is trained here. {error.message}",
            "A teacher is a model that Athanor has pre-trained.",
        ) from None


def found_teacher(recipe: Recipe) -> TeacherRecipe | None:
    """The recipe's teacher, if it has one, with the path of its folder for a name."""
    if recipe.pretrain.teacher is None:
        return None
    return recipe.pretrain.teacher.model_copy(update={"model": str(teacher_folder(recipe).resolve())})


def taught(teacher: TeacherRecipe) -> Distillation:
    """What the student learns. teacher: with the path of its folder."""
    return Distillation(
        load_decoder(Path(teacher.model)),
        direction=teacher.direction,
        temperature=teacher.temperature,
        weight=teacher.weight,
    )


def _teacher(recipe: Recipe) -> TeacherRecipe:
    if recipe.pretrain.teacher is None:
        raise RecipeError(
            'pretrain.objective = "distilled" needs a teacher.',
            "Name a run or a model folder: --set pretrain.teacher=my-run.",
        )
    return recipe.pretrain.teacher
