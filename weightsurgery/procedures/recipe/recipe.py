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
    """SHA-256 of what is read: by parameter name, for each of its values, by file name.

    Raises:
        RecipeError: Something else, or of what this recipe does not read.
    """
    node = table.entries.get(INPUTS)
    if node is None:
        return {}
    if not isinstance(node, MappingNode):
        raise RecipeError(f"{node.place}: {INPUTS}: no mapping", "Write KEY: {FILE: SHA256}.")
    found: dict[str, tuple[Mapping[str, str], ...]] = {}
    for key, each in node.entries.items():
        field = command.field(key)
        if field is None or field.kind is not str or field.name not in values:
            raise RecipeError(
                f"{node.keys[key]}: {INPUTS}: this recipe reads no {key!r}",
                f"Name what it reads as above, or leave out {key!r}.",
            )
        items = each.items if isinstance(each, SequenceNode) else (each,)
        number = len(values[field.name]) if field.many else 1
        if len(items) != number:
            raise RecipeError(
                f"{each.place}: {INPUTS}: {len(items)} of {number} of {key!r}",
                "List the files of each, in the order above; {} for one that is not to be checked.",
            )
        found[field.name] = tuple(map(listed_files, items))
    return found


def listed_files(node: Node) -> dict[str, str]:
    """SHA-256 by file name.

    Raises:
        RecipeError: Something else.
    """
    if not isinstance(node, MappingNode):
        raise RecipeError(f"{node.place}: no files", "Write {FILE: SHA256, ...}.")
    found = {}
    for name, each in node.entries.items():
        if not isinstance(each, ScalarNode) or not _SHA256.fullmatch(each.text):
            raise RecipeError(
                f"{each.place}: {name}: no SHA-256", "Write 64 digits from 0 to f, in lower case."
            )
        if os.path.isabs(name) or ".." in name.split("/"):
            raise RecipeError(f"{node.keys[name]}: {name!r} leads elsewhere", "Name a file.")
        found[name] = each.text
    return found


def listed_makers(table: MappingNode) -> dict[str, str]:
    """Versions, and the device.

    Raises:
        RecipeError: Something else.
    """
    node = table.entries.get(MADE_WITH)
    if node is None:
        return {}
    if not isinstance(node, MappingNode):
        raise RecipeError(f"{node.place}: {MADE_WITH}: no mapping", "Write NAME: VERSION, ...")
    found = {}
    for name, each in node.entries.items():
        if name not in MAKERS or not isinstance(each, ScalarNode):
            raise RecipeError(
                f"{node.keys[name]}: {MADE_WITH}: {name!r} with no version of anything known",
                f"Write NAME: VERSION, of {', '.join(MAKERS)}.",
            )
        found[name] = each.text
    return found


FORMAT = 1

# Keys that are no option of a command.
VERSION, COMMAND = "weightsurgery", "command"

# What transformers' Trainer may be told by a stranger: numbers of the training. Others read other
# files, load other code or report elsewhere.
_TRAINER = frozenset(
    {"adam_beta1", "adam_beta2", "adam_epsilon", "dataloader_drop_last", "label_smoothing_factor",
     "lr_scheduler_kwargs", "lr_scheduler_type", "max_grad_norm", "neftune_noise_alpha",
     "warmup_ratio"}
)  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """What to run.

    Attributes:
        file: Where it was read.
        command: The command.
        values: By parameter name, in the order of the recipe; what is not given is left out.
        inputs: SHA-256 of files by parameter name: for each of its values, by file name.
        made_with: Versions by package, and ``device``.
        result: SHA-256 of what is to come out, by file name.
        places: Where each key stands.
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
                f"Add a line  {field.key}: {'[...]' if field.many else '...'}",
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
        found = f" {node.text!r}" if isinstance(node, ScalarNode) else ""
        raise RecipeError(f"{node.place}: no command{found} that writes an output", choice)
    return commands[node.text]


def _field(command: RecipeCommand, key: str, place: Position) -> Field:
    field = command.field(key)
    if field is None:
        known = [name for each in command.fields if each.in_recipes for name in each.keys]
        near = get_close_matches(key.replace("_", "-"), known, 1)
        remedy = f"Did you mean {near[0]!r}?" if near else f"It takes: {', '.join(known)}."
        raise RecipeError(f"{place}: 'ws {command.name}' takes no {key!r}", remedy)
    if not field.in_recipes:
        raise RecipeError(
            f"{place}: {key!r} is no part of an edit, so it has no place in a recipe",
            "Leave it out; see what 'ws run' itself takes with 'ws run --help'.",
        )
    return field


def _value(field: Field, key: str, node: Node, place: Position) -> Any:
    """The value of one key; None where it says nothing."""
    nodes: Iterable[Node] = node.items if isinstance(node, SequenceNode) and field.many else [node]
    if isinstance(node, ScalarNode) and node.kind == "nothing":
        if field.required or field.default is not None:
            raise RecipeError(f"{place}: {key}: nothing", f"Write {_wanted(field)} there.")
        return None
    found = []
    for each in nodes:
        if not isinstance(each, ScalarNode):
            kind = "a list" if isinstance(each, SequenceNode) else "a mapping"
            raise RecipeError(f"{each.place}: {key}: {kind}", f"Write {_wanted(field)}.")
        found.append(_scalar(field, key, each))
    if not field.many:
        return found[0]
    if field.required and not found:
        raise RecipeError(f"{place}: {key}: an empty list", "Name at least one.")
    return found or None


def _wanted(field: Field) -> str:
    one = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}
    return f"a list, each item {one[field.kind]}" if field.many else one[field.kind]


def _scalar(field: Field, key: str, node: ScalarNode) -> Any:
    def wrong(found: str, remedy: str = "") -> RecipeError:
        return RecipeError(f"{node.place}: {key}: {found}", remedy or f"Write {_wanted(field)}.")

    if field.kind is str:
        if not node.text:
            raise wrong("empty")
        if node.kind in ("boolean", "nothing"):
            raise wrong(f"{node.text} is no text", f'Write it in quotes: "{node.text}"')
        if "\0" in node.text or any("\ud800" <= each <= "\udfff" for each in node.text):
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
