"""What a recipe lists to be checked: SHA-256 of what is read and written, and versions."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from weightsurgery.errors import RecipeError
from weightsurgery.procedures.recipe.command import Command
from weightsurgery.procedures.recipe.document import Items, Node, Scalar, Table

__all__ = [
    "COMPUTING",
    "INPUTS",
    "MADE_WITH",
    "MAKERS",
    "RESULT",
    "listed_files",
    "listed_inputs",
    "listed_makers",
]

INPUTS, MADE_WITH, RESULT = "inputs", "made-with", "result"

# What 'made-with' may name. Another version of the first may round otherwise or draw other numbers.
COMPUTING = ("weightsurgery", "torch", "transformers", "accelerate", "tokenizers", "peft")
MAKERS = (*COMPUTING, "safetensors", "python", "device")

_SHA256 = re.compile("[0-9a-f]{64}")


def listed_inputs(
    table: Table, command: Command, values: Mapping[str, Any]
) -> dict[str, tuple[Mapping[str, str], ...]]:
    """SHA-256 of what is read: by parameter name, for each of its values, by file name.

    Raises:
        RecipeError: Something else, or of what this recipe does not read.
    """
    node = table.entries.get(INPUTS)
    if node is None:
        return {}
    if not isinstance(node, Table):
        raise RecipeError(f"{node.place}: {INPUTS}: no mapping", "Write KEY: {FILE: SHA256}.")
    found: dict[str, tuple[Mapping[str, str], ...]] = {}
    for key, each in node.entries.items():
        field = command.field(key)
        if field is None or field.kind is not str or field.name not in values:
            raise RecipeError(
                f"{node.keys[key]}: {INPUTS}: this recipe reads no {key!r}",
                f"Name what it reads as above, or leave out {key!r}.",
            )
        items = each.items if isinstance(each, Items) else (each,)
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
    if not isinstance(node, Table):
        raise RecipeError(f"{node.place}: no files", "Write {FILE: SHA256, ...}.")
    found = {}
    for name, each in node.entries.items():
        if not isinstance(each, Scalar) or not _SHA256.fullmatch(each.text):
            raise RecipeError(
                f"{each.place}: {name}: no SHA-256", "Write 64 digits from 0 to f, in lower case."
            )
        if os.path.isabs(name) or ".." in name.split("/"):
            raise RecipeError(f"{node.keys[name]}: {name!r} leads elsewhere", "Name a file.")
        found[name] = each.text
    return found


def listed_makers(table: Table) -> dict[str, str]:
    """Versions, and the device.

    Raises:
        RecipeError: Something else.
    """
    node = table.entries.get(MADE_WITH)
    if node is None:
        return {}
    if not isinstance(node, Table):
        raise RecipeError(f"{node.place}: {MADE_WITH}: no mapping", "Write NAME: VERSION, ...")
    found = {}
    for name, each in node.entries.items():
        if name not in MAKERS or not isinstance(each, Scalar):
            raise RecipeError(
                f"{node.keys[name]}: {MADE_WITH}: {name!r} with no version of anything known",
                f"Write NAME: VERSION, of {', '.join(MAKERS)}.",
            )
        found[name] = each.text
    return found
