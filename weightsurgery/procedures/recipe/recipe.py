"""A recipe, checked against what its command takes.

::

    weightsurgery: 1            # version of this format
    command: project
    base: org/name@0123abcd     # arguments by their names, options by their long names
    forget: [./finetuned/authors]
    keep: [./finetuned/painters]
    rank: 64
    scale: 2.0
    out: ./edited
    inputs:                     # optional: SHA-256 of what is read, checked before it is
      base: {model.safetensors: 3f…}
      keep: [{model.safetensors: 9a…}]
    made-with: {torch: 2.9.0}   # optional: versions and device, compared with those here
    result: {model.safetensors: 77…}  # optional: SHA-256 of what is written, checked after

Relative paths are seen from the current directory, as on the command line.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from weightsurgery.errors import RecipeError
from weightsurgery.procedures.recipe.command import Field, RecipeCommand
from weightsurgery.procedures.recipe.document import (
    MappingNode,
    Node,
    Position,
    ScalarNode,
    SequenceNode,
    parse,
)

__all__ = [
    "COMMAND",
    "COMPUTING",
    "FORMAT",
    "INPUTS",
    "MADE_WITH",
    "MAKERS",
    "RESULT",
    "VERSION",
    "Recipe",
    "listed_files",
    "listed_inputs",
    "listed_makers",
    "read_recipe",
]

INPUTS, MADE_WITH, RESULT = "inputs", "made-with", "result"

# What 'made-with' may name. Another version of the first may round otherwise or draw other numbers.
COMPUTING = ("weightsurgery", "torch", "transformers", "accelerate", "tokenizers", "peft")
MAKERS = (*COMPUTING, "safetensors", "python", "device")

_SHA256 = re.compile("[0-9a-f]{64}")


def listed_inputs(
    table: MappingNode, command: RecipeCommand, values: Mapping[str, Any]
) -> dict[str, tuple[Mapping[str, str], ...]]:
    """SHA-256 of the inputs: by parameter name, a list over its values, by file name.

    Raises:
        RecipeError: It is malformed, or names an input that the recipe does not read.
    """
    node = table.entries.get(INPUTS)
    if node is None:
        return {}
    if not isinstance(node, MappingNode):
        raise RecipeError(f"{node.place}: {INPUTS}: no mapping", "Write KEY: {FILE: SHA256}.")
    digests: dict[str, tuple[Mapping[str, str], ...]] = {}
    for key, entry in node.entries.items():
        field = command.field(key)
        if field is None or field.kind is not str or field.name not in values:
            raise RecipeError(
                f"{node.keys[key]}: {INPUTS}: this recipe reads no {key!r}",
                f"Name what it reads as above, or leave out {key!r}.",
            )
        items = entry.items if isinstance(entry, SequenceNode) else (entry,)
        number = len(values[field.name]) if field.multiple else 1
        if len(items) != number:
            raise RecipeError(
                f"{entry.place}: {INPUTS}: {len(items)} of {number} of {key!r}",
                "List the files of each, in the order above; {} for one that is not to be checked.",
            )
        digests[field.name] = tuple(map(listed_files, items))
    return digests


def listed_files(node: Node) -> dict[str, str]:
    """SHA-256 by file name.

    Raises:
        RecipeError: The node holds something else.
    """
    if not isinstance(node, MappingNode):
        raise RecipeError(f"{node.place}: no files", "Write {FILE: SHA256, ...}.")
    digests = {}
    for name, entry in node.entries.items():
        if not isinstance(entry, ScalarNode) or not _SHA256.fullmatch(entry.text):
            raise RecipeError(
                f"{entry.place}: {name}: no SHA-256", "Write 64 digits from 0 to f, in lower case."
            )
        if os.path.isabs(name) or ".." in name.split("/"):
            raise RecipeError(f"{node.keys[name]}: {name!r} leads elsewhere", "Name a file.")
        digests[name] = entry.text
    return digests


def listed_makers(table: MappingNode) -> dict[str, str]:
    """Versions by package, and the device.

    Raises:
        RecipeError: The node holds something else.
    """
    node = table.entries.get(MADE_WITH)
    if node is None:
        return {}
    if not isinstance(node, MappingNode):
        raise RecipeError(f"{node.place}: {MADE_WITH}: no mapping", "Write NAME: VERSION, ...")
    makers = {}
    for name, entry in node.entries.items():
        if name not in MAKERS or not isinstance(entry, ScalarNode):
            raise RecipeError(
                f"{node.keys[name]}: {MADE_WITH}: {name!r} with no version of anything known",
                f"Write NAME: VERSION, of {', '.join(MAKERS)}.",
            )
        makers[name] = entry.text
    return makers


FORMAT = 1

# Keys that are no options of a command.
VERSION, COMMAND = "weightsurgery", "command"

# Arguments of transformers' Trainer that a stranger's recipe may set: numbers of the training.
# Others read other files, load other code or report elsewhere.
_TRAINER = frozenset(
    {"adam_beta1", "adam_beta2", "adam_epsilon", "dataloader_drop_last", "label_smoothing_factor",
     "lr_scheduler_kwargs", "lr_scheduler_type", "max_grad_norm", "neftune_noise_alpha",
     "warmup_ratio"}
)  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """A command with its values, and the expected digests.

    Attributes:
        file: Where it was read.
        command: The command.
        values: By parameter name, in the order of the recipe, without defaults.
        inputs: SHA-256 by parameter name: a list over its values, by file name.
        made_with: Versions by package, and ``device``.
        result: SHA-256 of the expected output, by file name.
        places: Positions of the keys.
    """

    file: str
    command: RecipeCommand
    values: Mapping[str, Any]
    inputs: Mapping[str, tuple[Mapping[str, str], ...]]
    made_with: Mapping[str, str]
    result: Mapping[str, str]
    places: Mapping[str, Position]


def read_recipe(text: str, file: str, commands: Mapping[str, RecipeCommand]) -> Recipe:
    """Read and check a recipe.

    Args:
        text: The document.
        file: Its name, for messages.
        commands: Those that a recipe may name.

    Raises:
        RecipeError: With file, line and remedy.
    """
    table = parse(text, file)
    _check_version(table, file)
    command = _command(table, file, commands)
    values: dict[str, Any] = {}
    for key, node in table.entries.items():
        if key in (VERSION, COMMAND, INPUTS, MADE_WITH, RESULT):
            continue
        field = _field(command, key, table.keys[key])
        if field.name in values:
            raise RecipeError(
                f"{table.keys[key]}: {key!r}, which is another name of {field.key!r}",
                "Leave one of them.",
            )
        value = _value(field, key, node, table.keys[key])
        if value is not None:
            values[field.name] = value
    for field in command.fields:
        if (field.required or field.name == "out") and values.get(field.name) is None:
            raise RecipeError(
                f"{file}: 'ws {command.name}' needs {field.key!r}",
                f"Add a line  {field.key}: {'[...]' if field.multiple else '...'}",
            )
    return Recipe(
        file,
        command,
        values,
        listed_inputs(table, command, values),
        listed_makers(table),
        listed_files(table.entries[RESULT]) if RESULT in table.entries else {},
        table.keys,
    )


def _check_version(table: MappingNode, file: str) -> None:
    node = table.entries.get(VERSION)
    if node is None:
        raise RecipeError(
            f"{file}: no line {VERSION!r}, so no recipe of ours",
            f"Begin it with  {VERSION}: {FORMAT}",
        )
    if not isinstance(node, ScalarNode) or node.kind != "whole" or int(node.text) < 1:
        raise RecipeError(
            f"{node.place}: {VERSION}: no version of the format", f"Write  {VERSION}: {FORMAT}"
        )
    if int(node.text) > FORMAT:
        raise RecipeError(
            f"{node.place}: format {node.text}, this ws knows up to {FORMAT}",
            "Update weightsurgery.",
        )


def _command(table: MappingNode, file: str, commands: Mapping[str, RecipeCommand]) -> RecipeCommand:
    node = table.entries.get(COMMAND)
    choice = f"Choose one of: {', '.join(commands)}."
    if node is None:
        raise RecipeError(f"{file}: no line {COMMAND!r}", choice)
    if not isinstance(node, ScalarNode) or node.text not in commands:
        named = f" {node.text!r}" if isinstance(node, ScalarNode) else ""
        raise RecipeError(f"{node.place}: no command{named} that writes an output", choice)
    return commands[node.text]


def _field(command: RecipeCommand, key: str, place: Position) -> Field:
    field = command.field(key)
    if field is None:
        known = [name for f in command.fields if f.in_recipes for name in f.keys]
        close = get_close_matches(key.replace("_", "-"), known, 1)
        remedy = f"Did you mean {close[0]!r}?" if close else f"It takes: {', '.join(known)}."
        raise RecipeError(f"{place}: 'ws {command.name}' takes no {key!r}", remedy)
    if not field.in_recipes:
        raise RecipeError(
            f"{place}: {key!r} is no part of an edit, so it has no place in a recipe",
            "Leave it out; see what 'ws run' itself takes with 'ws run --help'.",
        )
    return field


def _value(field: Field, key: str, node: Node, place: Position) -> Any:
    """The value of one key; None where it is null."""
    nodes: Iterable[Node] = (
        node.items if isinstance(node, SequenceNode) and field.multiple else [node]
    )
    if isinstance(node, ScalarNode) and node.kind == "nothing":
        if field.required or field.default is not None:
            raise RecipeError(f"{place}: {key}: nothing", f"Write {_wanted(field)} there.")
        return None
    values = []
    for item in nodes:
        if not isinstance(item, ScalarNode):
            kind = "a list" if isinstance(item, SequenceNode) else "a mapping"
            raise RecipeError(f"{item.place}: {key}: {kind}", f"Write {_wanted(field)}.")
        values.append(_scalar(field, key, item))
    if not field.multiple:
        return values[0]
    if field.required and not values:
        raise RecipeError(f"{place}: {key}: an empty list", "Name at least one.")
    return values or None


def _wanted(field: Field) -> str:
    one = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}
    return f"a list, each item {one[field.kind]}" if field.multiple else one[field.kind]


def _scalar(field: Field, key: str, node: ScalarNode) -> Any:
    def wrong(problem: str, remedy: str = "") -> RecipeError:
        return RecipeError(f"{node.place}: {key}: {problem}", remedy or f"Write {_wanted(field)}.")

    if field.kind is str:
        if not node.text:
            raise wrong("empty")
        if node.kind in ("boolean", "nothing"):
            raise wrong(f"{node.text} is no text", f'Write it in quotes: "{node.text}"')
        if "\0" in node.text or any("\ud800" <= character <= "\udfff" for character in node.text):
            raise wrong("a character that no file name holds")
        if key == "trainer-arg" and node.text.partition("=")[0] not in _TRAINER:
            raise wrong(
                f"{node.text} may do more than a recipe is free to",
                f"A recipe may set {', '.join(sorted(_TRAINER))}; for others type the command.",
            )
        return node.text
    if field.kind is bool:
        if node.kind != "boolean":
            raise wrong(f"{node.text!r} is neither true nor false")
        return node.text.lower() == "true"
    if node.quoted:
        raise wrong(f'"{node.text}" in quotes is a text', f"Write {_wanted(field)} without quotes.")
    if node.kind != "whole" and (field.kind is int or node.kind != "number"):
        raise wrong(f"{node.text!r} is not {_wanted(field).removeprefix('a list, each item ')}")
    value = field.kind(node.text)
    if not math.isfinite(value):
        raise wrong(f"{node.text} is too large for a number")
    return value
