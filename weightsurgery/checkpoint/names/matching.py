"""Which tensors of another checkpoint are the base's, by names and shapes alone.

One place for all that trainers and savers do to names: wrappers are taken off, a renaming that is
the same throughout is recognised, experts stored together are distinguished from experts stored one
by one, and GPT-2's matrices are recognised whether transposed or not. No weight is read: the result
says where each of the base's tensors lies in the other checkpoint.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from weightsurgery.checkpoint.names.experts import Experts, Role, find_experts
from weightsurgery.checkpoint.names.matrices import Block, Matrix
from weightsurgery.checkpoint.names.prefixes import (
    Renaming,
    Shape,
    find_renamings,
    plain_names,
    renamed,
    unwrapped,
)

__all__ = ["Match", "TensorLocation", "find_match"]

_CONV1D = re.compile(r"(^|\.)(c_attn|c_proj|c_fc|q_attn)\.weight$")


@dataclass(frozen=True)
class TensorLocation:
    """Where one of the base's tensors lies in another checkpoint.

    Attributes:
        shape: Its shape there, which differs from the base's where the vocabularies differ.
        blocks: The blocks of rows that it consists of, in order.
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
        places: By the base's names, without tensors that the other lacks.
        rest: Stored tensors of the other that the base has no place for.
        wrappers: How many names a wrapper was taken off.
        base_wrappers: The same of the base's names, to compare them; they stay in the output.
        renamings: Prefixes of names, and what each was read as.
        experts: How the other's experts are stored and how the base's, where they differ.
        regrouped: How many of the base's tensors are experts taken apart or put together.
        transposed: How many matrices are stored transposed.
    """

    places: Mapping[str, TensorLocation] = field(repr=False)
    rest: tuple[str, ...] = field(repr=False)
    wrappers: Mapping[str, int] = field(default_factory=dict)
    base_wrappers: Mapping[str, int] = field(default_factory=dict)
    renamings: tuple[Renaming, ...] = ()
    experts: tuple[str, str] | None = None
    regrouped: int = 0
    transposed: int = 0

    @property
    def is_identity(self) -> bool:
        """Whether all names and layouts are the base's already."""
        return not self.facts()

    def facts(self) -> dict[str, Any]:
        """For the record; empty where nothing was done."""
        facts: dict[str, Any] = {}
        if self.wrappers:
            facts["wrappers"] = dict(self.wrappers)
        if self.base_wrappers:
            facts["base_wrappers"] = dict(self.base_wrappers)
        if self.renamings:
            facts["renamed"] = [
                {"from": renaming.old, "to": renaming.new, "tensors": renaming.count}
                for renaming in self.renamings
            ]
        if self.experts:
            there, here = self.experts
            facts["experts"] = {"from": there, "to": here, "tensors": self.regrouped}
        if self.transposed:
            facts["transposed"] = self.transposed
        return facts


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
            sorted({e.layout for e in experts.values()}) for experts in (our_experts, their_experts)
        ]
        if not (our_experts and their_experts) or layouts[0] == layouts[1]:
            our_experts, their_experts = {}, {}
        self._layouts = (" and ".join(layouts[1]), " and ".join(layouts[0]))
        self._our_experts = our_experts
        # The other's matrices: by plain name, or by a made-up name for each matrix of experts.
        self._sources = _sources(theirs, their_experts)
        shapes = _sorted_conv1d(_separated(theirs, their_experts))
        goals = _sorted_conv1d(_separated(ours, our_experts))
        self._renamings = find_renamings(goals, shapes, where)
        self._names = self._named(goals, shapes)

    def _named(self, goals: Mapping[str, Shape], shapes: Mapping[str, Shape]) -> dict[str, str]:
        """The other's plain names → those of the base, or those the renamings give."""
        names = {name: name for name in shapes if name in goals}
        taken = set(names)
        for name in shapes:
            if name in names:
                continue
            new = renamed(name, list(self._renamings))
            names[name] = name if new in taken else new
            taken.add(names[name])
        return names

    def match(self) -> Match:
        """The result."""
        by_goal = {goal: name for name, goal in self._names.items()}
        places: dict[str, TensorLocation] = {}
        used: set[str] = set()
        regrouped = 0
        experts_of = {name: block for block in self._our_experts.values() for name in block.stored}
        theirs = {
            block: self._matrices(experts, by_goal) for block, experts in self._our_experts.items()
        }
        for plain, stored in self._ours.items():
            experts = experts_of.get(plain)
            if experts is not None:
                blocks = experts.assembled(plain, theirs[experts.block])
                place = None if blocks is None else TensorLocation(self._base[stored], blocks)
                regrouped += place is not None
            else:
                place = self._whole(by_goal.get(plain))
            if place is not None:
                places[stored] = place
                used.update(place.names)
        transposed = self._transpose(places)
        rest = tuple(stored for stored in self._other if stored not in used)
        return Match(
            places,
            rest,
            _wrappers(self._other),
            _wrappers(self._base),
            tuple(self._renamings),
            self._layouts if regrouped else None,
            regrouped,
            transposed,
        )

    def _whole(self, plain: str | None) -> TensorLocation | None:
        if plain is None or plain not in self._theirs:
            return None  # missing, or a matrix of experts that the base has no experts for
        stored = self._theirs[plain]
        shape = self._other[stored]
        return TensorLocation(shape, (Block((Matrix.whole(stored, shape),)),))

    def _matrices(self, experts: Experts, by_goal: Mapping[str, str]) -> dict[Role, Matrix]:
        """What the other has of a block of experts."""
        matrices = {}
        for role, wanted in experts.matrices.items():
            source = by_goal.get(_matrix_name(experts.block, role))
            if source is not None and self._sources[source].shape == wanted.shape:
                matrix = self._sources[source]
                matrices[role] = replace(matrix, name=self._theirs[matrix.name])
        return matrices

    def _transpose(self, places: dict[str, TensorLocation]) -> int:
        """Transpose GPT-2's matrices where none fits as it stands; how many there are."""
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
            block = Block((block.pieces[0].transposed(),))
            places[name] = TensorLocation(self._base[name], (block,))
        return len(names)


def _wrappers(names: Iterable[str]) -> dict[str, int]:
    """Wrapper → the number of names that contain it."""
    counts: dict[str, int] = {}
    for name in names:
        for wrapper in dict.fromkeys(unwrapped(name)[1]):
            counts[wrapper] = counts.get(wrapper, 0) + 1
    return counts


def _sorted_conv1d(shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """Shapes for comparison, sorted for GPT-2's matrices, which may be transposed."""
    return {n: tuple(sorted(shape)) if _CONV1D.search(n) else shape for n, shape in shapes.items()}


def _matrix_name(block: str, role: tuple[int, str]) -> str:
    return f"{block}.{role[0]}.{role[1]}"


def _sources(shapes: Mapping[str, Shape], experts: Mapping[str, Experts]) -> dict[str, Matrix]:
    """Every matrix of experts under a made-up name, and all other tensors under their own."""
    stored = {name for group in experts.values() for name in group.stored}
    matrices = {
        name: Matrix.whole(name, shape) for name, shape in shapes.items() if name not in stored
    }
    for block, group in experts.items():
        matrices |= {_matrix_name(block, role): matrix for role, matrix in group.matrices.items()}
    return matrices


def _separated(shapes: Mapping[str, Shape], experts: Mapping[str, Experts]) -> dict[str, Shape]:
    """Shapes, with the experts' matrices in place of the tensors that store them."""
    stored = {name for group in experts.values() for name in group.stored}
    separate = {name: shape for name, shape in shapes.items() if name not in stored}
    for block, group in experts.items():
        separate |= {
            _matrix_name(block, role): matrix.shape for role, matrix in group.matrices.items()
        }
    return separate
