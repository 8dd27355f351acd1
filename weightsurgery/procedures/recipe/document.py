"""Strict YAML with the place of every value: mappings, lists and scalars, and nothing else.

PyYAML parses; the tree is built here from its events, so that no tag makes an object, no alias
multiplies, no key is overwritten, and a scalar is what it looks like: YAML 1.1 would read ``1e-3``
as text, ``1:30`` as ninety and ``no`` as false.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, BinaryIO

from weightsurgery.errors import RecipeError

__all__ = ["MappingNode", "Node", "Position", "ScalarNode", "SequenceNode", "parse", "read_text"]

# A recipe that lists all shards of a model of a trillion parameters has a tenth of this.
LARGEST_BYTES = 1 << 20

_DEEPEST = 8
_LONGEST_NUMBER = 100

_WHOLE = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_NUMBER = re.compile(r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?")


@dataclass(frozen=True)
class Position:
    """A position in a document.

    Attributes:
        file: As named by the user.
        line: From 1.
        column: From 1.
    """

    file: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.file}, line {self.line}, column {self.column}"


@dataclass(frozen=True)
class ScalarNode:
    """One value.

    Attributes:
        text: As written, without quotes.
        quoted: Whether it stands in quotes or in a block, and so is text whatever it looks like.
        place: Its position.
    """

    text: str
    quoted: bool
    place: Position

    @property
    def kind(self) -> str:
        """``text``, ``whole``, ``number``, ``boolean`` or ``nothing``."""
        if self.quoted:
            return "text"
        if self.text in ("", "~", "null", "Null", "NULL"):
            return "nothing"
        if self.text in ("true", "True", "TRUE", "false", "False", "FALSE"):
            return "boolean"
        if len(self.text) <= _LONGEST_NUMBER:
            if _WHOLE.fullmatch(self.text):
                return "whole"
            if _NUMBER.fullmatch(self.text):
                return "number"
        return "text"


@dataclass(frozen=True)
class SequenceNode:
    """A list."""

    items: tuple[Node, ...]
    place: Position


@dataclass(frozen=True)
class MappingNode:
    """A mapping.

    Attributes:
        entries: Values by key, in the order of the document.
        keys: Positions of the keys.
        place: Position of its start.
    """

    entries: dict[str, Node]
    keys: dict[str, Position]
    place: Position


Node = ScalarNode | SequenceNode | MappingNode


def read_text(file: str) -> str:
    """Read a recipe; ``-`` is standard input.

    Raises:
        RecipeError: It cannot be read, is far too long, or is not UTF-8.
    """
    try:
        if file == "-":
            raw = _read_bounded(sys.stdin.buffer)
        else:
            with open(file, "rb") as stream:
                raw = _read_bounded(stream)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise RecipeError(
            f"{file}: cannot be read: {reason}",
            "Name a recipe, a YAML file; 'ws run --from OUT' writes one.",
        ) from None
    if len(raw) > LARGEST_BYTES:
        raise RecipeError(
            f"{file}: longer than {LARGEST_BYTES >> 10} KiB, so no recipe",
            "Name the recipe itself; 'ws run --from OUT' writes one.",
        )
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise RecipeError(
            f"{file}, line {line}: not UTF-8 text",
            "Save the recipe as UTF-8, or name another file.",
        ) from None


def _read_bounded(stream: BinaryIO) -> bytes:
    """Read up to one byte more than a recipe may have, in as many reads as it takes."""
    raw = b""
    while len(raw) <= LARGEST_BYTES and (more := stream.read(LARGEST_BYTES + 1 - len(raw))):
        raw += more
    return raw


def parse(text: str, file: str) -> MappingNode:
    """The document's mapping.

    Args:
        text: The document.
        file: Its name, for places.

    Raises:
        RecipeError: Not YAML; or YAML with more than one document, with a tag, an anchor or an
            alias, with the same key twice, or that holds anything but a mapping.
    """
    import yaml

    try:
        return _built(yaml.parse(text, Loader=yaml.SafeLoader), file)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = file if mark is None else str(Position(file, mark.line + 1, mark.column + 1))
        problem = " ".join(filter(None, (error.context, error.problem)))
        raise RecipeError(f"{where}: not YAML: {problem}", "Correct it there.") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise RecipeError(
            f"{file}, line {line}: holds the control character {json.dumps(chr(error.character))}",
            "Save the recipe as plain text, or name another file.",
        ) from None


@dataclass
class _Open:
    """A list or mapping whose end has not been read yet."""

    place: Position
    is_table: bool
    nodes: list[Node]

    def closed(self) -> Node:
        if not self.is_table:
            return SequenceNode(tuple(self.nodes), self.place)
        entries: dict[str, Node] = {}
        places: dict[str, Position] = {}
        for key, value in zip(self.nodes[::2], self.nodes[1::2], strict=True):
            if not isinstance(key, ScalarNode) or (key.kind == "nothing"):
                raise RecipeError(f"{key.place}: a key that is no word", "Write KEY: VALUE.")
            if key.text in entries:
                raise RecipeError(
                    f"{key.place}: {key.text!r} again, as in line {places[key.text].line}",
                    "Leave one of them.",
                )
            entries[key.text], places[key.text] = value, key.place
        return MappingNode(entries, places, self.place)


def _built(events: Iterable[Any], file: str) -> MappingNode:
    import yaml

    root: Node | None = None
    stack: list[_Open] = []
    for event in events:
        mark = event.start_mark
        place = Position(file, mark.line + 1, mark.column + 1)
        if isinstance(event, yaml.DocumentStartEvent) and root is not None:
            raise RecipeError(f"{place}: a second document", "Give each recipe a file of its own.")
        if isinstance(event, yaml.NodeEvent):
            _refuse_magic(event, place)
        node: Node
        if isinstance(event, yaml.ScalarEvent):
            node = ScalarNode(_joined(event.value), event.style is not None, place)
        elif isinstance(event, yaml.CollectionStartEvent):
            if len(stack) == _DEEPEST:
                raise RecipeError(f"{place}: nested too deeply", "See 'ws run --help'.")
            stack.append(_Open(place, isinstance(event, yaml.MappingStartEvent), []))
            continue
        elif isinstance(event, yaml.CollectionEndEvent):
            node = stack.pop().closed()
        else:
            continue
        if stack:
            stack[-1].nodes.append(node)
        else:
            root = node
    if isinstance(root, MappingNode):
        return root
    where = file if root is None else str(root.place)
    problem = (
        "empty"
        if root is None or (isinstance(root, ScalarNode) and not root.text)
        else "no mapping"
    )
    raise RecipeError(
        f"{where}: {problem}", "A recipe is lines of KEY: VALUE; 'ws run --from OUT' writes one."
    )


def _joined(text: str) -> str:
    """The text with pairs of surrogates, as JSON escapes write them, joined to one character."""
    if not any("\ud800" <= character <= "\udfff" for character in text):
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")


def _refuse_magic(event: Any, place: Position) -> None:
    """Tags, anchors and aliases: a recipe needs none, and a stranger's may mean harm by them."""
    import yaml

    if isinstance(event, yaml.AliasEvent):
        raise RecipeError(f"{place}: an alias (*{event.anchor})", "Write the value out.")
    if event.anchor is not None:
        raise RecipeError(f"{place}: an anchor (&{event.anchor})", "Write the value without it.")
    if event.tag is not None:
        raise RecipeError(f"{place}: a tag ({event.tag})", "Write the value without it.")
