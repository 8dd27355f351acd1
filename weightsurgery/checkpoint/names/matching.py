"""What another checkpoint's tensors are in the base's words, found by names and shapes alone.

One place for all that trainers and savers do to names: wrappers are taken off, a renaming that is
the same throughout is recognised, experts that are stored together are told from experts stored
one by one, and GPT-2's matrices are found whichever way round they lie. Nothing is read: what comes
out says where each of the base's tensors is to be found in the other checkpoint.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from weightsurgery.checkpoint.names.experts import Experts, Role, find_experts
from weightsurgery.checkpoint.names.matrices import Block, Matrix
from weightsurgery.checkpoint.names.prefixes import Renaming, Shape, find_renamings, renamed
from weightsurgery.checkpoint.names.wrappers import plain_names, unwrapped

__all__ = ["Match", "TensorLocation", "find_match"]

_CONV1D = re.compile(r"(^|\.)(c_attn|c_proj|c_fc|q_attn)\.weight$")


@dataclass(frozen=True)
class TensorLocation:
    """Where one of the base's tensors lies in another checkpoint.

    Attributes:
        shape: Of what lies there; not the base's where a vocabulary has another length.
        blocks: What it consists of, in the order of its rows.
    """

    shape: Shape
    blocks: tuple[Block, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The stored tensors that are read for it."""
        every = (piece.name for block in self.blocks for piece in block.pieces)
        return tuple(dict.fromkeys(every))


@dataclass(frozen=True)
class Match:
    """How two checkpoints' names and layouts go together.

    Attributes:
        places: By the base's names; what is missing in the other is missing here.
        rest: Stored tensors of the other that the base has no place for.
        wrappers: How many names a wrapper was taken off.
        base_wrappers: The same of the base's names, to compare them; they stay in the output.
        renamings: What beginnings of names were read as.
        experts: How the other's experts are stored and how the base's, where they differ.
        regrouped: How many of the base's tensors are experts taken apart or put together.
        turned: How many matrices are stored the other way round.
    """

    places: Mapping[str, TensorLocation] = field(repr=False)
    rest: tuple[str, ...] = field(repr=False)
    wrappers: Mapping[str, int] = field(default_factory=dict)
    base_wrappers: Mapping[str, int] = field(default_factory=dict)
    renamings: tuple[Renaming, ...] = ()
    experts: tuple[str, str] | None = None
    regrouped: int = 0
    turned: int = 0

    @property
    def as_it_is(self) -> bool:
        """Whether all names and layouts are the base's already."""
        return not self.facts()

    def facts(self) -> dict[str, Any]:
        """For the record; empty where nothing was done."""
        found: dict[str, Any] = {}
        if self.wrappers:
            found["wrappers"] = dict(self.wrappers)
        if self.base_wrappers:
            found["base_wrappers"] = dict(self.base_wrappers)
        if self.renamings:
            found["renamed"] = [
                {"from": each.old, "to": each.new, "tensors": each.count} for each in self.renamings
            ]
        if self.experts:
            there, here = self.experts
            found["experts"] = {"from": there, "to": here, "tensors": self.regrouped}
        if self.turned:
            found["transposed"] = self.turned
        return found


def find_match(
    base: Mapping[str, Shape], other: Mapping[str, Shape], where: str = "the vector"
) -> Match:
    """How the tensors of another checkpoint go together with the base's.

    Args:
        base: Names and shapes of the base.
        other: Names and shapes of the other.
        where: The other, for messages.

    Raises:
        MismatchError: Its names fit the base's in two ways, or it holds a tensor twice.
    """
    if all(base.get(name) == shape for name, shape in other.items()):
        return _identical(base, other)
    return _Matcher(base, other, where).match()


def _identical(base: Mapping[str, Shape], other: Mapping[str, Shape]) -> Match:
    places = {
        n: TensorLocation(other[n], (Block((Matrix.whole(n, other[n]),)),))
        for n in base
        if n in other
    }
    return Match(places, ())


class _Matcher:
    """One comparison; see :func:`find_match`."""

    def __init__(self, base: Mapping[str, Shape], other: Mapping[str, Shape], where: str) -> None:
        self._base, self._other, self._where = base, other, where
        self._ours = plain_names(base, "the base")
        self._theirs = plain_names(other, where)
        ours = {plain: base[name] for plain, name in self._ours.items()}
        theirs = {plain: other[name] for plain, name in self._theirs.items()}
        our_experts, their_experts = find_experts(ours), find_experts(theirs)
        layouts = [
            sorted({e.layout for e in found.values()}) for found in (our_experts, their_experts)
        ]
        if not (our_experts and their_experts) or layouts[0] == layouts[1]:
            our_experts, their_experts = {}, {}
        self._layouts = (" and ".join(layouts[1]), " and ".join(layouts[0]))
        self._our_experts = our_experts
        # What the other has: by plain name, or by a name made up for each matrix of experts.
        self._sources = _sources(theirs, their_experts)
        shapes = _either_way(_in_one_by_one(theirs, their_experts))
        goals = _either_way(_in_one_by_one(ours, our_experts))
        self._renamings = find_renamings(goals, shapes, where)
        self._names = self._named(goals, shapes)

    def _named(self, goals: Mapping[str, Shape], shapes: Mapping[str, Shape]) -> dict[str, str]:
        """The other's plain names → what they are called in the base, or go by."""
        found = {name: name for name in shapes if name in goals}
        taken = set(found)
        for name in shapes:
            if name in found:
                continue
            new = renamed(name, list(self._renamings))
            found[name] = name if new in taken else new
            taken.add(found[name])
        return found

    def match(self) -> Match:
        """The result."""
        by_goal = {goal: name for name, goal in self._names.items()}
        places: dict[str, TensorLocation] = {}
        used: set[str] = set()
        regrouped = 0
        blocks = {n: each for each in self._our_experts.values() for n in each.stored}
        theirs = {block: self._matrices(each, by_goal) for block, each in self._our_experts.items()}
        for plain, stored in self._ours.items():
            experts = blocks.get(plain)
            if experts is not None:
                made = experts.assembled(plain, theirs[experts.block])
                place = None if made is None else TensorLocation(self._base[stored], made)
                regrouped += place is not None
            else:
                place = self._whole(by_goal.get(plain))
            if place is not None:
                places[stored] = place
                used.update(place.names)
        turned = self._turn(places)
        rest = tuple(stored for stored in self._other if stored not in used)
        return Match(
            places,
            rest,
            _wrappers(self._other),
            _wrappers(self._base),
            tuple(self._renamings),
            self._layouts if regrouped else None,
            regrouped,
            turned,
        )

    def _whole(self, plain: str | None) -> TensorLocation | None:
        if plain is None or plain not in self._theirs:
            return None  # missing, or a matrix of experts that the base has no experts for
        stored = self._theirs[plain]
        shape = self._other[stored]
        return TensorLocation(shape, (Block((Matrix.whole(stored, shape),)),))

    def _matrices(self, experts: Experts, by_goal: Mapping[str, str]) -> dict[Role, Matrix]:
        """What the other has of a block of experts."""
        found = {}
        for role, wanted in experts.matrices.items():
            source = by_goal.get(_made_up(experts.block, role))
            if source is not None and self._sources[source].shape == wanted.shape:
                matrix = self._sources[source]
                found[role] = replace(matrix, name=self._theirs[matrix.name])
        return found

    def _turn(self, places: dict[str, TensorLocation]) -> int:
        """Take GPT-2's matrices the other way round, where none fits as it stands."""
        names = [
            name
            for name, place in places.items()
            if _CONV1D.search(name) and len(self._base[name]) == len(place.shape) == 2
        ]
        unlike = [name for name in names if len(set(self._base[name])) == 2]
        if not unlike or any(places[n].shape != self._base[n][::-1] for n in unlike):
            return 0
        for name in names:
            (block,) = places[name].blocks
            places[name] = TensorLocation(self._base[name], (Block((block.pieces[0].turned(),)),))
        return len(names)


def _wrappers(names: Iterable[str]) -> dict[str, int]:
    """Each wrapper, and how many names it stands in."""
    found: dict[str, int] = {}
    for name in names:
        for each in dict.fromkeys(unwrapped(name)[1]):
            found[each] = found.get(each, 0) + 1
    return found


def _either_way(shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """Shapes to know tensors by: GPT-2's matrices lie one way round or the other."""
    return {n: tuple(sorted(each)) if _CONV1D.search(n) else each for n, each in shapes.items()}


def _made_up(block: str, role: tuple[int, str]) -> str:
    return f"{block}.{role[0]}.{role[1]}"


def _sources(shapes: Mapping[str, Shape], experts: Mapping[str, Experts]) -> dict[str, Matrix]:
    """Every matrix of experts by a name made up for it, and all else by its own."""
    stored = {name for each in experts.values() for name in each.stored}
    found = {
        name: Matrix.whole(name, shape) for name, shape in shapes.items() if name not in stored
    }
    for block, each in experts.items():
        found |= {_made_up(block, role): matrix for role, matrix in each.matrices.items()}
    return found


def _in_one_by_one(shapes: Mapping[str, Shape], experts: Mapping[str, Experts]) -> dict[str, Shape]:
    """Shapes, with the experts' matrices in place of what they are stored in."""
    stored = {name for each in experts.values() for name in each.stored}
    found = {name: shape for name, shape in shapes.items() if name not in stored}
    for block, each in experts.items():
        found |= {_made_up(block, role): matrix.shape for role, matrix in each.matrices.items()}
    return found
