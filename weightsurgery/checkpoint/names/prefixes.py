"""A consistent renaming between two checkpoints, found by names and shapes together.

Names are compared as patterns, with the numbers of layers and experts taken out: the prefix of a
pattern is renamed and the numbers are carried over, so that one renaming holds for every layer and
no layer can pass for another. A renaming counts for as many tensors as it maps to one of the base
of the same shape. The one that explains most comes first; the rest is searched again, since parts
of a model (text, vision, head) may each be renamed in another way. A head with another name
altogether (``embed_out``, ``lm_head``) is recognised by being the only one.

What trainers' wrappers leave in names (``torch.compile``, data parallelism, FSDP, activation
checkpointing and Lightning hold the model, or modules inside it, in a module of their own) is taken
out first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from weightsurgery.checkpoint.naming import kind_of
from weightsurgery.errors import MismatchError

__all__ = ["WRAPPERS", "Renaming", "Shape", "find_renamings", "plain_names", "renamed", "unwrapped"]

Shape = tuple[int, ...]
_Pattern = tuple[str, ...]
_Numbers = tuple[str, ...]
_Groups = dict[_Pattern, dict[_Numbers, Shape]]
_Pairs = dict[tuple[_Pattern, _Numbers], tuple[_Pattern, _Numbers]]

NUMBER = "*"


@dataclass(frozen=True)
class Renaming:
    """A prefix of names in one checkpoint, and the base's prefix for it.

    Attributes:
        old: As in ``model.layers.*.block_sparse_moe.``; empty, or with a dot at its end.
        new: Likewise, with as many numbers.
        count: How many tensors it maps to one of the base's of the same shape.
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
    renamings: list[Renaming] = []
    while theirs and ours:
        best = _best(theirs, ours, where)
        if best is None:
            break
        (old, new), pairs = best
        renamings.append(Renaming(_text(old), _text(new), len(pairs)))
        for (pattern, numbers), (goal, same) in pairs.items():
            del theirs[pattern][numbers], ours[goal][same]
        theirs, ours = ({p: shapes for p, shapes in g.items() if shapes} for g in (theirs, ours))
    renamings += _head(theirs, ours)
    if 2 * sum(renaming.count for renaming in renamings) < fewer:
        return []  # a few that look alike, of two models that do not
    return renamings


def _head(theirs: _Groups, ours: _Groups) -> list[Renaming]:
    """A renamed head: the only one left on each side, both of one shape."""
    left = [
        [(p, s) for p, e in g.items() for n, s in e.items() if kind_of(_joined(p, n)) == "head"]
        for g in (theirs, ours)
    ]
    left = [[head for head in side if head[0][-1] == "weight"] for side in left]
    if [len(side) for side in left] != [1, 1]:
        return []
    ((old, shape),), ((new, same),) = left
    if shape != same or old.count(NUMBER) != new.count(NUMBER):
        return []
    return [Renaming(_text(old[:-1]), _text(new[:-1]), 1)]


def renamed(name: str, renamings: list[Renaming]) -> str:
    """A name after the renamings: the longest prefix counts."""
    pattern, numbers = _split(name)
    for renaming in sorted(renamings, key=lambda renaming: -renaming.old.count(".")):
        old, new = _parts(renaming.old), _parts(renaming.new)
        if pattern[: len(old)] == old:
            return _joined((*new, *pattern[len(old) :]), numbers)
    return name


def _best(
    theirs: _Groups, ours: _Groups, where: str
) -> tuple[tuple[_Pattern, _Pattern], _Pairs] | None:
    candidates: list[tuple[tuple[_Pattern, _Pattern], _Pairs]] = []
    for change in _candidates(theirs, ours):
        pairs = _pairs(change, theirs, ours)
        under = sum(len(shapes) for p, shapes in theirs.items() if p[: len(change[0])] == change[0])
        if 2 * len(pairs) > under:  # most names with this prefix: else it is no renaming
            candidates.append((change, pairs))
    if not candidates:
        return None
    candidates.sort(key=lambda candidate: (-len(candidate[1]), candidate[0]))
    best = candidates[0]
    for rival in candidates[1:]:
        if len(rival[1]) == len(best[1]) and _conflict(best[1], rival[1]):
            old, new = (_text(pattern) for pattern in best[0])
            also_old, also_new = (_text(pattern) for pattern in rival[0])
            raise MismatchError(
                f"{where}: its names fit the base's in two ways that are equally good: {old!r} as"
                f" {new!r}, and {also_old!r} as {also_new!r} ({len(best[1])} tensors each)",
                "Rename its tensors as the base calls them ('ws inspect -v' lists the names).",
            )
    return best


def _candidates(theirs: _Groups, ours: _Groups) -> list[tuple[_Pattern, _Pattern]]:
    """Pairs of prefixes that remain before the longest common suffix, at least a module's name."""
    by_end: dict[tuple[str, ...], list[_Pattern]] = {}
    for goal in ours:
        by_end.setdefault(goal[-2:], []).append(goal)
    changes = set()
    for pattern in theirs:
        for goal in by_end.get(pattern[-2:], ()):
            same = _common_end(pattern, goal)
            named = any(part != NUMBER for part in pattern[len(pattern) - same : -1])
            if named and pattern.count(NUMBER) == goal.count(NUMBER):
                changes.add((pattern[: len(pattern) - same], goal[: len(goal) - same]))
    return sorted(changes)


def _pairs(change: tuple[_Pattern, _Pattern], theirs: _Groups, ours: _Groups) -> _Pairs:
    old, new = change
    pairs: _Pairs = {}
    for pattern, by_numbers in theirs.items():
        if pattern[: len(old)] != old:
            continue
        goal = (*new, *pattern[len(old) :])
        shapes = ours.get(goal, {})
        for numbers, shape in by_numbers.items():
            if shapes.get(numbers) == shape:
                pairs[pattern, numbers] = (goal, numbers)
    return pairs


def _conflict(first: _Pairs, second: _Pairs) -> bool:
    """Whether two renamings map one tensor to two, or two to one."""
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
    groups: _Groups = {}
    for name, shape in names.items():
        pattern, numbers = _split(name)
        groups.setdefault(pattern, {})[numbers] = shape
    return groups


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


WRAPPERS = (
    "_orig_mod",
    "_fsdp_wrapped_module",
    "_fpw_module",
    "_checkpoint_wrapped_module",
    "_forward_module",
    "module",
)


def unwrapped(name: str) -> tuple[str, tuple[str, ...]]:
    """A name without the wrappers in it, and those wrappers."""
    parts = name.split(".")
    wrappers = tuple(part for part in parts if part in WRAPPERS)
    if not wrappers or len(wrappers) == len(parts):
        return name, ()
    return ".".join(part for part in parts if part not in WRAPPERS), wrappers


def plain_names(names: Iterable[str], where: str) -> dict[str, str]:
    """Plain name → the name as stored.

    Args:
        names: As stored.
        where: The checkpoint, for messages.

    Raises:
        MismatchError: Two names are one without their wrappers.
    """
    stored: dict[str, str] = {}
    for name in names:
        plain, _ = unwrapped(name)
        if plain in stored:
            raise MismatchError(
                f"{where}: holds {stored[plain]!r} and {name!r}, which are one tensor without the"
                " wrappers of a trainer",
                "Save it again from the unwrapped model, so that each tensor is there once.",
            )
        stored[plain] = name
    return stored
