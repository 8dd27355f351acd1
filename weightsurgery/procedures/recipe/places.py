"""Where a recipe may write: below the current directory, unless the user says otherwise."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from weightsurgery.errors import RecipeError
from weightsurgery.procedures.recipe.recipe import Recipe

__all__ = ["check_places"]


def check_places(recipe: Recipe, said: Collection[str]) -> None:
    """Refuse places that a stranger's recipe has no business in.

    What is read from there later, by Python or a desktop, may be run: so a recipe alone writes
    neither outside of the current directory nor into hidden ones.

    Args:
        recipe: The recipe.
        said: Parameters that the command line gives in the recipe's stead.

    Raises:
        RecipeError: It would write elsewhere.
    """
    for field in recipe.command.fields:
        value = recipe.values.get(field.name)
        if not field.writes or value is None or field.name in said:
            continue
        for text in value if field.many else [value]:
            if reason := _elsewhere(text):
                remedy = "Write it as a path below the current directory"
                if field.name == "out":
                    remedy += ", or name the place yourself with -o"
                raise RecipeError(
                    f"{recipe.places[_key(recipe, field.keys)]}: {text!r} {reason}: a recipe"
                    " alone writes below the current directory",
                    f"{remedy}.",
                )


def _key(recipe: Recipe, keys: tuple[str, ...]) -> str:
    return next(key for key in keys if key in recipe.places)


def _elsewhere(text: str) -> str:
    """Why a path leads elsewhere; "" if it does not."""
    if os.path.isabs(text):
        return "is an absolute path"
    parts = Path(text).parts
    if ".." in parts:
        return "leads upwards"
    if text.startswith("~"):
        return "is in a home"
    if any(each.startswith(".") for each in parts):
        return "is hidden"
    here = Path(os.path.realpath("."))
    there = Path(os.path.realpath(text))
    if there == here or not there.is_relative_to(here):
        return "is no place below it" if there == here else f"is a link to {there}"
    return ""
