"""The edits: what each does to one tensor. Adding a row to :data:`EDITS` adds an edit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch

from weightsurgery.algebra.discriminate import BASES, SIDES, KeepSpace, discriminate
from weightsurgery.algebra.lowrank import LowRank, Rank, RankRule
from weightsurgery.algebra.svd import Truncation
from weightsurgery.checkpoint.naming import is_transposed
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.errors import EditError
from weightsurgery.surgery.selection import LARGEST_SCALE
from weightsurgery.vectors.task_vector import Delta, FactorDelta, SumDelta, TaskVector

__all__ = [
    "DISCRIMINATING",
    "EDITS",
    "PLAIN",
    "Add",
    "Edit",
    "Learn",
    "Negate",
    "Prepared",
    "Project",
]

# Of a task's energy: what is left below this (1e-5 of its norm) is the rounding of float32
# factors, and is written as no change at all.
_NOTHING = 1e-10


@dataclass(frozen=True)
class Prepared:
    """One tensor's change, ready to be applied at any scale.

    Attributes:
        delta: The change, before the edit's sign and scale.
        facts: What the record says of it.
    """

    delta: Delta
    facts: Mapping[str, Any] = field(default_factory=dict)


class Edit(Protocol):
    """``W' = W + sign · scale · T'``.

    Attributes:
        name: Key in :data:`EDITS`.
        sign: −1 to take away, +1 to add.
        factors: Whether matrices are decomposed (needs more memory, uses the device).
        scale: λ.
    """

    name: ClassVar[str]
    sign: ClassVar[int]
    factors: ClassVar[bool]

    @property
    def scale(self) -> float:
        """λ."""
        ...

    def vectors(self) -> Mapping[str, TaskVector]:
        """The vectors by their role, for checks and the record."""
        ...

    def parameters(self) -> Mapping[str, Any]:
        """Every parameter, for the record."""
        ...

    def prepare(self, base: Checkpoint, name: str, device: torch.device) -> Prepared | None:
        """Work out one tensor's change; None where there is none."""
        ...


def _check_factors(scale: float, *vectors: TaskVector) -> None:
    for factor in (1.0, *(factor for vector in vectors for factor, _ in vector.terms)):
        for value in (scale, factor, scale * factor):
            if not abs(value) <= LARGEST_SCALE:
                raise EditError(f"scale {value}", "Give a finite number, up to 1e30.")


@dataclass(frozen=True)
class _Plain:
    """A vector as it is (Ilharco et al. 2023, arXiv 2212.04089).

    Attributes:
        vector: The task vector.
        scale: λ.
    """

    vector: TaskVector
    scale: float = 1.0
    factors: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _check_factors(self.scale, self.vector)

    def vectors(self) -> Mapping[str, TaskVector]:
        """See :class:`Edit`."""
        return {"vector": self.vector}

    def parameters(self) -> Mapping[str, Any]:
        """See :class:`Edit`."""
        return {"scale": self.scale}

    def prepare(self, base: Checkpoint, name: str, device: torch.device) -> Prepared | None:
        """See :class:`Edit`."""
        delta = self.vector.at(name)
        if delta is None:
            return None
        terms = [each for _, each in delta.terms]
        if all(isinstance(each, FactorDelta) for each in terms):
            ranks = [each.right.shape[1] for each in terms if isinstance(each, FactorDelta)]
            return Prepared(delta, {"rank": sum(ranks)})
        return Prepared(delta)


@dataclass(frozen=True)
class Negate(_Plain):
    """``W' = W − λ T``."""

    name: ClassVar[str] = "negate"
    sign: ClassVar[int] = -1


@dataclass(frozen=True)
class Add(_Plain):
    """``W' = W + λ T``."""

    name: ClassVar[str] = "add"
    sign: ClassVar[int] = 1


@dataclass(frozen=True)
class _Discriminating:
    """A task, less what it shares with tasks to keep.

    A reconstruction of UNLEARN and LEARN (Lizzo & Heck, arXiv 2408.04140), whose equations are
    not published: both the task and the tasks to keep are truncated to low rank, the task is
    discriminated against them (see :mod:`weightsurgery.algebra.discriminate`), and what is left is
    subtracted or added. Only matrices are changed; biases and norms stay as they are.

    Attributes:
        task: The task to forget or to learn.
        keep: The tasks to keep; at least one.
        rank: How many factors of the task to use.
        keep_rank: How many of each task to keep; by default as many.
        side: One of :data:`SIDES`.
        basis: One of :data:`BASES`.
        scale: λ.
        seed: Of the randomised SVD.
    """

    task: TaskVector
    keep: tuple[TaskVector, ...]
    rank: RankRule = field(default_factory=lambda: Rank(64))
    keep_rank: RankRule | None = None
    side: str = "right"
    basis: str = "joint"
    scale: float = 1.0
    seed: int = 0
    factors: ClassVar[bool] = True
    role: ClassVar[str] = "forget"

    def __post_init__(self) -> None:
        if not self.keep:
            raise EditError("no task to keep", "Pass --keep, or use plain negate or add.")
        _check_factors(self.scale, self.task, *self.keep)
        for vector in self.keep:
            if not any(factor for factor, _ in vector.terms):
                raise EditError(
                    f"keep {vector.label}: every factor is zero, so nothing would be kept",
                    "Give it another factor; only the directions count, not their length.",
                )
        if self.side not in SIDES:
            raise EditError(f"side {self.side!r}", f"Choose one of: {', '.join(SIDES)}.")
        if self.basis not in BASES:
            raise EditError(f"basis {self.basis!r}", f"Choose one of: {', '.join(BASES)}.")

    def vectors(self) -> Mapping[str, TaskVector]:
        """See :class:`Edit`."""
        keeps = {f"keep{number}": each for number, each in enumerate(self.keep, 1)}
        return {self.role: self.task, **keeps}

    def parameters(self) -> Mapping[str, Any]:
        """See :class:`Edit`."""
        return {
            "scale": self.scale,
            "rank": str(self.rank),
            "keep_rank": str(self.keep_rank or self.rank),
            "side": self.side,
            "basis": self.basis,
            "seed": self.seed,
        }

    def prepare(self, base: Checkpoint, name: str, device: torch.device) -> Prepared | None:
        """See :class:`Edit`; the plan has refused tensors of more than two axes."""
        entry = base.entry(name)
        if len(entry.shape) < 2:
            return None
        delta = self.task.at(name)
        if delta is None:
            return None
        transposed = is_transposed(name, base.config)

        def truncated(of: SumDelta, rule: RankRule) -> Truncation:
            m, n = entry.shape
            return of.truncated(
                lambda start, stop: base.rows(name, start, stop),
                (m, n),
                rule,
                transposed=transposed,
                device=device,
                seed=self.seed,
            )

        task = truncated(delta, self.rank)
        found = [truncated(each, self.keep_rank or self.rank) for each in self._keeps(name)]
        left = task.factors
        if found:
            keep = KeepSpace.of([each.factors for each in found], self.basis)
            left = discriminate(task.factors, keep, self.side)
        energy = task.factors.energy
        if left.energy <= _NOTHING * energy:
            left = LowRank(left.U[:, :1], torch.zeros(1), left.V[:, :1])
        facts = {
            "rank": left.rank,
            "kept_energy": round(task.kept, 6),
            "svd_residual": float(f"{task.residual:.3g}"),
            "survived": round(left.energy / energy, 9) if energy > 0 else 0.0,
            "keep_ranks": [each.factors.rank for each in found],
        }
        if transposed:
            left = LowRank(left.V, left.S, left.U)
        return Prepared(FactorDelta.of(left), facts)

    def _keeps(self, name: str) -> list[SumDelta]:
        deltas = [vector.at(name) for vector in self.keep]
        return [delta for delta in deltas if delta is not None]


@dataclass(frozen=True)
class Project(_Discriminating):
    """UNLEARN: ``W' = W − λ T'``."""

    name: ClassVar[str] = "project"
    sign: ClassVar[int] = -1


@dataclass(frozen=True)
class Learn(_Discriminating):
    """LEARN: ``W' = W + λ T'``."""

    name: ClassVar[str] = "learn"
    sign: ClassVar[int] = 1
    role: ClassVar[str] = "task"


PLAIN: Mapping[str, type[Negate] | type[Add]] = {"negate": Negate, "add": Add}
DISCRIMINATING: Mapping[str, type[Project] | type[Learn]] = {"project": Project, "learn": Learn}
EDITS: Mapping[str, type[Negate] | type[Add] | type[Project] | type[Learn]] = {
    **PLAIN,
    **DISCRIMINATING,
}
