"""From the record of an output to the recipe that makes it again, as YAML or as plain data."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from weightsurgery.checkpoint.record import EditRecord
from weightsurgery.errors import RecipeError
from weightsurgery.procedures.recipe.command import RecipeCommand
from weightsurgery.procedures.recipe.recipe import (
    COMMAND,
    FORMAT,
    INPUTS,
    MADE_WITH,
    MAKERS,
    RESULT,
    VERSION,
)
from weightsurgery.procedures.recipe.settings import called_from_python, settings
from weightsurgery.vectors.sources import split_scale

__all__ = ["Written", "recipe_data", "recipe_of", "recipe_text"]


@dataclass(frozen=True)
class Written:
    """A recipe to be written.

    Attributes:
        command: The command.
        given: The given values, by parameter name, in their order.
        settled: All other values, as the run resolved them.
        inputs: SHA-256 by parameter name: a list over its values, by file name.
        made_with: Versions, and ``device``.
        result: SHA-256 of the output, by file name.
        notices: What the user should know, one line per notice.
    """

    command: RecipeCommand
    given: Mapping[str, Any]
    settled: Mapping[str, Any]
    inputs: Mapping[str, Sequence[Mapping[str, str]]]
    made_with: Mapping[str, str]
    result: Mapping[str, str]
    notices: tuple[str, ...] = ()


def recipe_of(
    record: EditRecord,
    directory: str,
    commands: Mapping[str, RecipeCommand],
    out: str | None = None,
) -> Written:
    """The recipe of an output.

    Hub names are pinned to the commit that was read. Options that were not given are written with
    the values that were used, so that another version's defaults change nothing.

    Args:
        record: Its record.
        directory: Where it is; the ``out`` of a record that names no command.
        commands: Those that a recipe may name.
        out: Write this ``out`` instead.

    Raises:
        RecipeError: No command of ours made it, or none is equivalent.
    """
    place = f"{directory}: its record"
    try:
        return _recipe_of(record, directory, place, commands, out)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise RecipeError(
            f"{place} is damaged ({type(error).__name__}: {error})",
            "Check the output with 'ws verify'.",
        ) from None


def _recipe_of(
    record: EditRecord,
    directory: str,
    place: str,
    commands: Mapping[str, RecipeCommand],
    out: str | None,
) -> Written:
    if record.command and record.command[0] == "ws":
        command, given = _typed(record.command, commands, place)
    else:
        command, given = called_from_python(record, commands, place)
        given["out"] = directory
    if out is not None:
        given["out"] = out
    if given.get("out") is None:
        raise RecipeError(
            f"{place} holds the command {' '.join(record.command)!r}, which writes nothing",
            "Name a directory that ws wrote.",
        )
    recorded = settings(record, command, given)
    settled = {
        field.name: recorded.get(field.name, field.default)
        for field in command.fields
        if field.in_recipes and not field.former and field.name not in given
    }
    read = _Read.of(record)
    given = {name: read.pinned(value) for name, value in given.items()}
    inputs, notices = read.of_values(command, given)
    result = {name: facts["sha256"] for name, facts in record.files.items()}
    if record.kind == "task-vector" and command.field("vector") is not None:
        result = {}  # the recipe's own output is the model beside which this vector was saved
        notices.append("This vector was saved beside an edit: the recipe makes both again.")
    made_with = dict(record.versions)
    if "device" in record.parameters:
        made_with["device"] = record.parameters["device"]
    return Written(
        command,
        given,
        settled,
        inputs,
        {name: made_with[name] for name in MAKERS if name in made_with},
        result,
        tuple(notices),
    )


def _typed(
    words: Sequence[str], commands: Mapping[str, RecipeCommand], place: str
) -> tuple[RecipeCommand, dict[str, Any]]:
    """The recorded command line: the command and what was given."""
    if not all(isinstance(word, str) for word in words) or len(words) < 2:
        raise RecipeError(f"{place} holds no command line", "Name a directory that ws wrote.")
    command = commands.get(words[1])
    if command is None:
        raise RecipeError(
            f"{place} holds the command 'ws {words[1]}', which this ws cannot run from a recipe",
            f"Those it can: {', '.join(commands)}.",
        )
    try:
        given = command.parsed(words[2:])
    except RecipeError as error:
        raise RecipeError(f"{place}: {error.what}", error.remedy) from None
    lacking = [field.key for field in command.fields if field.required and field.name not in given]
    if lacking:
        raise RecipeError(
            f"{place}: its command lacks {lacking[0]!r}", "Name a directory that ws wrote."
        )
    in_recipes = {field.name for field in command.fields if field.in_recipes}
    return command, {name: value for name, value in given.items() if name in in_recipes}


def _normal(name: str) -> str:
    return os.path.normpath(os.path.expanduser(name))


@dataclass(frozen=True)
class _Read:
    """The inputs in a record, by name.

    Attributes:
        files: SHA-256 by file name.
        revisions: Commit; of repositories alone.
    """

    files: Mapping[str, Mapping[str, str]]
    revisions: Mapping[str, str]

    @classmethod
    def of(cls, record: EditRecord) -> _Read:
        files: dict[str, Mapping[str, str]] = {}
        revisions: dict[str, str] = {}
        for entry in record.inputs.values():
            name = entry.get("name")
            if not isinstance(name, str):
                continue  # more than one data set; their SHA-256 are elsewhere
            files.setdefault(_normal(name), entry.get("files", {}))
            if entry.get("revision"):
                revisions[name] = entry["revision"]
        for entry in record.parameters.get("data", {}).values():
            files.setdefault(_normal(entry["name"]), entry["sha256"])
        return cls(files, revisions)

    def pinned(self, value: Any) -> Any:
        """The value with ``org/name`` as ``org/name@commit``, wherever it was read from there."""
        if isinstance(value, list):
            return [self.pinned(item) for item in value]
        if not isinstance(value, str):
            return value
        name, _ = split_scale(value)
        revision = self.revisions.get(name)
        if revision is None:
            return value
        plain, mark, part = name.partition("#")  # of a data set
        return f"{plain.partition('@')[0]}@{revision}{mark}{part}{value[len(name) :]}"

    def of_values(
        self, command: RecipeCommand, given: Mapping[str, Any]
    ) -> tuple[dict[str, Sequence[Mapping[str, str]]], list[str]]:
        """SHA-256 of the values' files, and notices about values without any."""
        digests: dict[str, Sequence[Mapping[str, str]]] = {}
        unknown: list[str] = []
        pinned = {_normal(self.pinned(name)): files for name, files in self.files.items()}
        for field in command.fields:
            if field.kind is not str or field.name not in given or field.name == "out":
                continue
            values = given[field.name] if field.multiple else [given[field.name]]
            names = [split_scale(text)[0] for text in values]
            files = [pinned.get(_normal(name), {}) for name in names]
            if any(files):
                digests[field.name] = files
                unknown += [name for name, known in zip(names, files, strict=True) if not known]
        notices = [
            f"The record has no SHA-256 of {name}: it will not be checked." for name in unknown
        ]
        return digests, notices


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
