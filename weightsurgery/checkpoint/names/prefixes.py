"""A consistent renaming between two checkpoints, found by names and shapes together.

Names are compared as patterns, with the numbers of layers and experts taken out: what is renamed is
the beginning of a pattern, and the numbers are carried over, so that one renaming holds for every
layer and no layer can pass for another. A renaming counts for as many tensors as it leads to one
of the base of the same shape. The one that explains most comes first; what it leaves is looked at
again, since parts of a model (text, vision, head) may be renamed each in its own way. A head whose
whole name is another (``embed_out``, ``lm_head``) is known by being the only one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from weightsurgery.checkpoint.naming import kind_of
from weightsurgery.errors import MismatchError

__all__ = ["Renaming", "Shape", "find_renamings", "renamed"]

Shape = tuple[int, ...]
_Pattern = tuple[str, ...]
_Numbers = tuple[str, ...]
_Groups = dict[_Pattern, dict[_Numbers, Shape]]
_Pairs = dict[tuple[_Pattern, _Numbers], tuple[_Pattern, _Numbers]]

NUMBER = "*"


@dataclass(frozen=True)
class Renaming:
    """The beginning of names in one checkpoint, and what it is in the base.

    Attributes:
        old: As in ``model.layers.*.block_sparse_moe.``; empty, or with a dot at its end.
        new: Likewise, with as many numbers.
        count: How many tensors it leads to one of the base's of the same shape.
    """

    old: str
    new: str
    count: int


def find_renamings(
    base: Mapping[str, Shape], other: Mapping[str, Shape], where: str = "the vector"
) -> list[Renaming]:
    """The renamings that make the names of one checkpoint those of another.

    Args:
        base: Names and shapes of the base.
        other: Names and shapes of the other.
        where: The other, for messages.

    Returns:
        Those that explain most first; empty where all names are shared, or nothing explains them.

    Raises:
        MismatchError: Two renamings explain the same names equally well.
    """
    theirs = _grouped({name: shape for name, shape in other.items() if name not in base})
    ours = _grouped({name: shape for name, shape in base.items() if name not in other})
    fewer = min(sum(map(len, theirs.values())), sum(map(len, ours.values())))
    found: list[Renaming] = []
    while theirs and ours:
        best = _best(theirs, ours, where)
        if best is None:
            break
        (old, new), pairs = best
        found.append(Renaming(_text(old), _text(new), len(pairs)))
        for (pattern, numbers), (goal, same) in pairs.items():
            del theirs[pattern][numbers], ours[goal][same]
        theirs, ours = ({p: each for p, each in g.items() if each} for g in (theirs, ours))
    found += _head(theirs, ours)
    if 2 * sum(each.count for each in found) < fewer:
        return []  # a few that look alike, of two models that do not
    return found


def _head(theirs: _Groups, ours: _Groups) -> list[Renaming]:
    """A head that has another name: the only one that is left on both sides, of one shape."""
    left = [
        [(p, s) for p, e in g.items() for n, s in e.items() if kind_of(_joined(p, n)) == "head"]
        for g in (theirs, ours)
    ]
    left = [[each for each in side if each[0][-1] == "weight"] for side in left]
    if [len(side) for side in left] != [1, 1]:
        return []
    ((old, shape),), ((new, same),) = left
    if shape != same or old.count(NUMBER) != new.count(NUMBER):
        return []
    return [Renaming(_text(old[:-1]), _text(new[:-1]), 1)]


def renamed(name: str, renamings: list[Renaming]) -> str:
    """A name as the renamings have it: the longest beginning counts."""
    pattern, numbers = _split(name)
    for each in sorted(renamings, key=lambda each: -each.old.count(".")):
        old, new = _parts(each.old), _parts(each.new)
        if pattern[: len(old)] == old:
            return _joined((*new, *pattern[len(old) :]), numbers)
    return name


def _best(
    theirs: _Groups, ours: _Groups, where: str
) -> tuple[tuple[_Pattern, _Pattern], _Pairs] | None:
    found: list[tuple[tuple[_Pattern, _Pattern], _Pairs]] = []
    for change in _candidates(theirs, ours):
        pairs = _pairs(change, theirs, ours)
        under = sum(len(each) for p, each in theirs.items() if p[: len(change[0])] == change[0])
        if 2 * len(pairs) > under:  # most of what is called so: else it is no renaming of theirs
            found.append((change, pairs))
    if not found:
        return None
    found.sort(key=lambda each: (-len(each[1]), each[0]))
    best = found[0]
    for rival in found[1:]:
        if len(rival[1]) == len(best[1]) and _conflict(best[1], rival[1]):
            old, new = (_text(each) for each in best[0])
            also_old, also_new = (_text(each) for each in rival[0])
            raise MismatchError(
                f"{where}: its names fit the base's in two ways that are equally good: {old!r} as"
                f" {new!r}, and {also_old!r} as {also_new!r} ({len(best[1])} tensors each)",
                "Rename its tensors as the base calls them ('ws inspect -v' lists the names).",
            )
    return best


def _candidates(theirs: _Groups, ours: _Groups) -> list[tuple[_Pattern, _Pattern]]:
    """What differs before the longest common end of two patterns, a module's name at least."""
    by_end: dict[tuple[str, ...], list[_Pattern]] = {}
    for goal in ours:
        by_end.setdefault(goal[-2:], []).append(goal)
    found = set()
    for pattern in theirs:
        for goal in by_end.get(pattern[-2:], ()):
            same = _common_end(pattern, goal)
            named = any(part != NUMBER for part in pattern[len(pattern) - same : -1])
            if named and pattern.count(NUMBER) == goal.count(NUMBER):
                found.add((pattern[: len(pattern) - same], goal[: len(goal) - same]))
    return sorted(found)


def _pairs(change: tuple[_Pattern, _Pattern], theirs: _Groups, ours: _Groups) -> _Pairs:
    old, new = change
    found: _Pairs = {}
    for pattern, each in theirs.items():
        if pattern[: len(old)] != old:
            continue
        goal = (*new, *pattern[len(old) :])
        shapes = ours.get(goal, {})
        for numbers, shape in each.items():
            if shapes.get(numbers) == shape:
                found[pattern, numbers] = (goal, numbers)
    return found


def _conflict(first: _Pairs, second: _Pairs) -> bool:
    """Whether two renamings send one tensor to two, or two to one."""
    if any(key in second for key in first):
        return True
    return not set(first.values()).isdisjoint(second.values())


def _common_end(first: _Pattern, second: _Pattern) -> int:
    count = 0
    for a, b in zip(reversed(first), reversed(second), strict=False):
        if a != b:
            break
        count += 1
    return count


def _grouped(names: Mapping[str, Shape]) -> _Groups:
    found: _Groups = {}
    for name, shape in names.items():
        pattern, numbers = _split(name)
        found.setdefault(pattern, {})[numbers] = shape
    return found


def _split(name: str) -> tuple[_Pattern, _Numbers]:
    parts = name.split(".")
    numbers = tuple(part for part in parts if part.isdecimal())
    return tuple(NUMBER if part.isdecimal() else part for part in parts), numbers


def _joined(pattern: _Pattern, numbers: _Numbers) -> str:
    rest = iter(numbers)
    return ".".join(next(rest, part) if part == NUMBER else part for part in pattern)


def _text(pattern: _Pattern) -> str:
    return "".join(f"{part}." for part in pattern)


def _parts(text: str) -> _Pattern:
    return tuple(text.split(".")[:-1])
