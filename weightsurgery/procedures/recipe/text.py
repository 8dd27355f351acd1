"""A recipe as YAML, or as plain data."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from weightsurgery.procedures.recipe.from_record import Written
from weightsurgery.procedures.recipe.recipe import (
    COMMAND,
    FORMAT,
    INPUTS,
    MADE_WITH,
    RESULT,
    VERSION,
)

__all__ = ["recipe_data", "recipe_text"]


def recipe_text(recipe: Written, origin: str) -> str:
    """The recipe as a document that :func:`~.recipe.read_recipe` reads.

    Args:
        recipe: The recipe.
        origin: The output it is the recipe of.
    """
    head, given, settled, rest = _parts(recipe)
    origin = "".join(character if character.isprintable() else "?" for character in origin)
    return "\n".join(
        [
            f"# How {origin} was made; 'ws run' with this file makes it again.",
            "# Relative paths are seen from the directory in which it is run.",
            _yaml(head | given),
            "# What was not given, as it came to be:",
            _yaml(settled),
            "# To check what is read and what comes out; may be removed:",
            _yaml(rest),
        ]
    )


def recipe_data(recipe: Written) -> dict[str, Any]:
    """The same as plain data; as JSON it is a recipe too."""
    head, given, settled, rest = _parts(recipe)
    return head | given | settled | rest


def _parts(recipe: Written) -> tuple[dict[str, Any], ...]:
    keys = {field.name: field.key for field in recipe.command.fields}
    multiple = {field.name for field in recipe.command.fields if field.multiple}

    def named(values: Mapping[str, Any]) -> dict[str, Any]:
        given = {name: value for name, value in values.items() if value is not None}
        return {keys[name]: _number_as_such(value) for name, value in given.items()}

    def files(name: str, digests: Sequence[Mapping[str, str]]) -> Any:
        return [_sorted(one) for one in digests] if name in multiple else _sorted(digests[0])

    inputs = {keys[name]: files(name, digests) for name, digests in recipe.inputs.items()}
    rest = {INPUTS: inputs, MADE_WITH: dict(recipe.made_with), RESULT: _sorted(recipe.result)}
    return (
        {VERSION: FORMAT, COMMAND: recipe.command.name},
        named(recipe.given),
        named(recipe.settled),
        {name: value for name, value in rest.items() if value},
    )


def _sorted(files: Mapping[str, str]) -> dict[str, str]:
    return dict(sorted(files.items()))


def _number_as_such(value: Any) -> Any:
    """``rank: 64`` rather than ``rank: '64'``: the option takes a word, which may be a number."""
    if isinstance(value, str) and re.fullmatch("0|[1-9][0-9]{0,8}", value):
        return int(value)
    return value


def _yaml(data: Mapping[str, Any]) -> str:
    if not data:
        return ""
    import yaml

    # Unprintable characters are written as YAML escapes.
    printable = json.dumps(data, ensure_ascii=False).isprintable()
    return str(
        yaml.safe_dump(
            dict(data),
            sort_keys=False,
            allow_unicode=printable,
            default_flow_style=False,
            width=1 << 20,
        )
    )
