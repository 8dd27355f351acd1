"""Words of others in a model card: names, commands and tables that cannot break out of their place.

Cards are Markdown with HTML, and what stands in them comes from file names, tensor names and
command lines. Whatever could be read as markup is written as a character reference.
"""

from __future__ import annotations

import re
import shlex
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from weightsurgery.checkpoint.record import EditRecord

__all__ = ["block", "code", "hub_names", "literal", "shown_command", "shown_name", "table",
           "without_paths"]  # fmt: skip

# Nothing in it that Markdown, HTML or a table row would take for itself.
_SAFE = re.compile(r"[\w./:+,=@~*()\[\]{}'\"!?#%&;^$ -]+")
_MARKUP = re.compile(r"[&<>`*_\[\]{}|\\~#$^@:!]")
_FACTOR = re.compile(r":[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$", re.I)


def _visible(text: str) -> str:
    """Without what cannot be seen or ends a line: each such character becomes one that can."""
    return "".join(
        "\N{REPLACEMENT CHARACTER}" if _unseen(letter) else letter
        for letter in re.sub(r"[\n\r\t]+", " ", text)
    )


def _unseen(letter: str) -> bool:
    kind = unicodedata.category(letter)
    return kind.startswith("C") or kind in ("Zl", "Zp")


def literal(text: str) -> str:
    """Text that is shown letter by letter, wherever it stands in a line or a table's cell."""
    return _MARKUP.sub(lambda match: f"&#{ord(match[0])};", _visible(text).strip())


def code(text: str) -> str:
    """Text as code, in a line or a table's cell."""
    if not text.strip():
        return "–"
    if _SAFE.fullmatch(text) and text == text.strip() and all(map(str.isprintable, text)):
        return f"`{text}`"
    return f"<code>{literal(text)}</code>"


def block(lines: Iterable[str], language: str = "") -> str:
    """Lines as a block of code, whose fence is longer than any in them."""
    text = "\n".join(lines)
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], left: frozenset[int]) -> str:
    """A Markdown table; cells are Markdown already.

    Args:
        columns: Headings.
        rows: Cells, as many per row as there are headings.
        left: Numbers of the columns that hold words rather than figures.
    """
    rules = ("---" if number in left else "--:" for number in range(len(columns)))
    lines = [columns, tuple(rules), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def shown_name(source: Mapping[str, Any]) -> str:
    """What the card calls an input: a Hub name as it is, a local path by its last part."""
    name = source.get("name", "")
    if isinstance(name, list | tuple):
        return ", ".join(_last(str(path)) for path in name)
    return str(name) if source.get("revision") else _last(str(name))


def _last(path: str) -> str:
    return PurePath(path).name or "a local directory"


def hub_names(inputs: Mapping[str, Mapping[str, Any]]) -> frozenset[str]:
    """Names of the inputs that came from the Hub, as typed."""
    return frozenset(str(source["name"]) for source in inputs.values() if source.get("revision"))


def shown_command(command: Sequence[str], from_hub: frozenset[str]) -> str:
    """A command line for people: local paths by their last part, odd characters as escapes.

    Args:
        command: Its words.
        from_hub: Names with a slash that are no paths.
    """
    return " ".join(_quoted(_shortened(word, from_hub)) for word in command)


def _shortened(word: str, from_hub: frozenset[str]) -> str:
    option, equals, value = word.partition("=")
    if not (equals and option.startswith("--")):
        option, equals, value = "", "", word
    factor = _FACTOR.search(value)
    end = factor[0] if factor else ""
    name = value.removesuffix(end)
    if name in from_hub or ("/" not in name and not name.startswith("~")):
        return word
    return f"{option}{equals}{_last(name)}{end}"


def _quoted(word: str) -> str:
    """For a shell; what could end the block or the card's own part is escaped."""
    if word.isprintable() and not re.search("[<>`]", word):
        return shlex.quote(word)
    escaped = "".join(_escaped(letter) for letter in word)
    return f"$'{escaped}'"


def _escaped(letter: str) -> str:
    if letter in "\\'":
        return f"\\{letter}"
    if letter in "<>`" or (ord(letter) < 128 and not letter.isprintable()):
        return f"\\x{ord(letter):02x}"
    return letter if letter.isprintable() else f"\\U{ord(letter):08x}"


# A path of a machine: absolute, or of a home; elsewhere in a sentence it begins after a space.
_PATH = re.compile(r"(/|~[^/\s]*/)[^/]")
_IN_TEXT = re.compile(r"(?<![^\s'\"(=,])(?:/|~[^/\s]*/|\.\.?/)[^\s'\"),/][^\s'\"),]*")


def without_paths(record: EditRecord) -> EditRecord:
    """A record to publish: inputs and places by the last part of their names alone.

    Their SHA-256 say which they were. Names on the Hub stay.

    Returns:
        The record itself where it holds no paths.
    """
    from_hub = hub_names(record.inputs)
    shown = replace(
        record,
        command=[_shortened(word, from_hub) for word in record.command],
        parameters=_without(record.parameters, from_hub),
        inputs=_without(record.inputs, from_hub),
        summary=_without(record.summary, from_hub),
        lineage=_without(record.lineage, from_hub),
        parent=_without(record.parent, from_hub),
    )
    return record if asdict(shown) == asdict(record) else shown


def _without(content: Any, from_hub: frozenset[str]) -> Any:
    if isinstance(content, str):
        if content in from_hub:
            return content
        if _PATH.match(content) or content.startswith(("./", "../")):
            return _shortened(content, from_hub)
        return _IN_TEXT.sub(lambda match: _last(match[0]), content)
    if isinstance(content, Mapping):
        shown: dict[str, Any] = {}
        for key, item in content.items():
            name = _without(key, from_hub)
            while name in shown:  # of another directory
                name += "'"
            shown[name] = _without(item, from_hub)
        # An input's: a relative path, too, tells of this machine.
        if isinstance(shown.get("name"), str) and not content.get("revision"):
            shown["name"] = _shortened(shown["name"], from_hub)
        return shown
    if isinstance(content, list | tuple):
        return [_without(part, from_hub) for part in content]
    return content
