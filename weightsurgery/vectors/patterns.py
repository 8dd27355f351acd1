"""Patterns in an adapter's config, matched in bounded time.

peft reads the keys of ``alpha_pattern`` and ``rank_pattern`` as regular expressions over module
names. Python's own matcher tries one way after another, which for some patterns never ends; here
all ways are followed at once, as sets of places in the name, and a budget bounds what they may
cost.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from re import _constants, _parser  # type: ignore[attr-defined]
from typing import Any

from weightsurgery.errors import VectorError

__all__ = ["ModulePattern"]

# A pattern names modules: no longer than names are, and no dearer than a few thousand steps each.
_LONGEST = 1000
_BUDGET = 100_000

_PLAIN = re.compile(r"(\^?)((?:[\w-]|\\?\.|\\[-_])+)(\$?)", re.ASCII)

_Places = frozenset[int]


class ModulePattern:
    """A pattern that peft matches against the end of a module's name, from the start or a dot on.

    Args:
        text: The pattern.
        where: The adapter, for messages.
        setting: What it is a key of, for messages.

    Raises:
        VectorError: It is no such pattern, or one of a kind that no adapter needs.
    """

    def __init__(self, text: str, where: str, setting: str = "alpha_pattern") -> None:
        self._text, self._where, self._setting = text, where, setting
        if len(text) > _LONGEST:
            raise self._refused(f"of {len(text)} characters")
        plain = _PLAIN.fullmatch(text)
        # A dot matches any character, so it is one only where it is written as one.
        self._literal: str | None = None
        if plain is not None and not re.search(r"(?<!\\)\.", plain[2]):
            self._literal = plain[2].replace("\\", "")
            self._anchored = bool(plain[1])
            return
        try:
            tree = _parser.parse(text)
        except (re.error, OverflowError, RecursionError) as error:
            raise self._refused(f"no regular expression ({error})") from None
        if tree.state.flags & ~re.UNICODE:
            raise self._refused("with flags")
        self._tree = tree

    def matches(self, module: str) -> bool:
        """Whether the pattern matches a module's name, as peft does.

        Raises:
            VectorError: Matching costs too much.
        """
        if self._literal is not None:
            if module == self._literal:
                return True
            return not self._anchored and module.endswith(f".{self._literal}")
        starts = {0, *(at + 1 for at, letter in enumerate(module) if letter == ".")}
        self._left = _BUDGET
        try:
            return len(module) in self._ends(self._tree, frozenset(starts), module)
        except RecursionError:
            raise self._refused("nested too deeply") from None

    def _refused(self, why: str) -> VectorError:
        return VectorError(
            f"{self._where}: {self._setting} {self._text[:80]!r}: {why}",
            "Merge the adapter in peft, and pass the merged checkpoint instead.",
        )

    def _ends(self, nodes: Iterable[tuple[Any, Any]], places: _Places, name: str) -> _Places:
        """The places where a sequence may end that begins at one of these places."""
        for kind, what in nodes:
            self._left -= 1 + len(places)
            if self._left < 0:
                raise self._refused("too costly to match")
            if not places:
                return places
            places = self._step(kind, what, places, name)
        return places

    def _step(self, kind: Any, what: Any, places: _Places, name: str) -> _Places:
        if kind in (_constants.LITERAL, _constants.NOT_LITERAL, _constants.ANY, _constants.IN):
            return frozenset(at + 1 for at in places if at < len(name)
                             and self._one(kind, what, name[at]))  # fmt: skip
        if kind is _constants.AT:
            return frozenset(at for at in places if self._at(what, at, name))
        if kind is _constants.SUBPATTERN:
            _, more, fewer, inside = what
            if more or fewer:
                raise self._refused("with flags")
            return self._ends(inside, places, name)
        if kind is _constants.BRANCH:
            none: _Places = frozenset()
            return none.union(*(self._ends(branch, places, name) for branch in what[1]))
        if kind in (_constants.MAX_REPEAT, _constants.MIN_REPEAT):
            least, most, item = what
            return self._repeated(least, most, item, places, name)
        raise self._refused(f"holds {str(kind).lower()}")

    def _repeated(self, least: int, most: int, item: Any, places: _Places, name: str) -> _Places:
        for _ in range(least):
            before, places = places, self._ends(item, places, name)
            if places == before:  # more of the same
                break
        ends, new = set(places), places
        for _ in range(min(int(most) - least, len(name) + 1)):
            new = self._ends(item, new, name) - ends
            if not new:
                break
            ends |= new
        self._left -= len(ends)
        return frozenset(ends)

    def _one(self, kind: Any, what: Any, letter: str) -> bool:
        if kind is _constants.ANY:
            return letter != "\n"
        if kind is _constants.LITERAL:
            return ord(letter) == int(what)
        if kind is _constants.NOT_LITERAL:
            return ord(letter) != int(what)
        negated = what[0][0] is _constants.NEGATE
        return any(self._in(item, letter) for item in _items(what)) != negated

    def _in(self, item: tuple[Any, Any], letter: str) -> bool:
        kind, what = item
        if kind is _constants.LITERAL:
            return ord(letter) == int(what)
        if kind is _constants.RANGE:
            return bool(what[0] <= ord(letter) <= what[1])
        if kind is _constants.CATEGORY:
            return _CATEGORIES[what].match(letter) is not None
        raise self._refused(f"holds {str(kind).lower()}")

    def _at(self, what: Any, at: int, name: str) -> bool:
        if what in (_constants.AT_BEGINNING, _constants.AT_BEGINNING_STRING):
            return at == 0
        if what in (_constants.AT_END, _constants.AT_END_STRING):
            return at == len(name)
        before = at > 0 and re.match(r"\w", name[at - 1]) is not None
        after = at < len(name) and re.match(r"\w", name[at]) is not None
        return (before != after) == (what is _constants.AT_BOUNDARY)


def _items(what: Any) -> Iterator[tuple[Any, Any]]:
    return (item for item in what if item[0] is not _constants.NEGATE)


_CATEGORIES = {
    _constants.CATEGORY_DIGIT: re.compile(r"\d"),
    _constants.CATEGORY_NOT_DIGIT: re.compile(r"\D"),
    _constants.CATEGORY_SPACE: re.compile(r"\s"),
    _constants.CATEGORY_NOT_SPACE: re.compile(r"\S"),
    _constants.CATEGORY_WORD: re.compile(r"\w"),
    _constants.CATEGORY_NOT_WORD: re.compile(r"\W"),
}
