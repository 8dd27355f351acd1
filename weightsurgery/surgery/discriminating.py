"""UNLEARN and LEARN: a task, less what it shares with tasks to keep, subtracted or added."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from weightsurgery.algebra.activations import check_epsilon, keep_inputs, outside, response
from weightsurgery.algebra.discriminate import BASES, SIDES, SOFT_EPSILON, KeepSpace, discriminate
from weightsurgery.algebra.lowrank import LowRank, Rank, RankRule
from weightsurgery.algebra.svd import Truncation
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.checkpoint.stacks import input_width, is_in_out, is_matrix, is_stack
from weightsurgery.deferred import torch
from weightsurgery.errors import EditError
from weightsurgery.suggestions import one_of
from weightsurgery.surgery.edit import Prepared, check_scales
from weightsurgery.vectors.deltas import FactorDelta, StackDelta, SumDelta
from weightsurgery.vectors.statistics import InputStatistics, check_width, total_gram
from weightsurgery.vectors.task_vector import TaskVector

__all__ = ["INPUTS_EPSILON", "Decomposed", "Learn", "Project", "or_nothing"]

INPUTS_EPSILON = 1e-3
"""The ridge of activation statistics where none is given."""

# Of a task's energy: a result below this (1e-5 of its norm) is the rounding of float32 factors,
# and is written as no change at all.
_NOTHING = 1e-10

# Of the inputs' energy: rounding leaves this much outside of keep tasks that span all inputs.
_NOTHING_OUTSIDE = 1e-12


@dataclass(frozen=True)
class Decomposed:
    """One tensor's task and tasks to keep as factors, oriented (out, in).

    Attributes:
        task: The task.
        keeps: The tasks to keep that change the tensor.
        transposed: Whether the tensor is stored (in, out).
    """

    task: Truncation
    keeps: tuple[Truncation, ...]
    transposed: bool

    def stored(self, change: LowRank) -> FactorDelta:
        """A change, oriented (out, in), as one of the tensor as it is stored."""
        return FactorDelta.of(LowRank(change.V, change.S, change.U) if self.transposed else change)


def or_nothing(change: LowRank, task: LowRank) -> LowRank:
    """A discriminated task; zero, of rank 1, where only rounding is left of it."""
    if change.energy > _NOTHING * task.energy:
        return change
    return LowRank(change.U[:, :1], torch.zeros(1), change.V[:, :1])


def _of_stack(facts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A stack's facts for the record: the number of matrices, and the extremes over them."""
    keeps = [matrix["keep_ranks"] for matrix in facts]
    return {
        "matrices": len(facts),
        "rank": max(matrix["rank"] for matrix in facts),
        "kept_energy": min(matrix["kept_energy"] for matrix in facts),
        "svd_residual": max(matrix["svd_residual"] for matrix in facts),
        "survived": max(matrix["survived"] for matrix in facts),
        "keep_ranks": [max(ranks) for ranks in zip(*keeps, strict=True)],
    }


@dataclass(frozen=True)
class _Discriminating:
    """A task, less what it shares with tasks to keep.

    A reconstruction of UNLEARN and LEARN (Lizzo & Heck, arXiv 2408.04140), whose equations are
    not published: both the task and the tasks to keep are truncated to low rank, the task is
    discriminated against them (see :mod:`weightsurgery.algebra.discriminate`), and what is left is
    subtracted or added. Only matrices are changed, those of a stack one by one; biases and norms
    stay as they are.

    Inputs to keep, given as activation statistics, damp the change in their directions (see
    :mod:`weightsurgery.algebra.activations`). With ``side`` right or both and basis joint, the
    span of the keep tasks stays untouched exactly: the ridge is that of the inputs outside it.

    Attributes:
        task: The task to forget or to learn.
        keep: The tasks to keep; at least one, unless there are ``keep_inputs``.
        rank: Number of factors of the task to use.
        keep_rank: Number of factors of the tasks to keep; by default the same.
        side: One of :data:`SIDES`.
        basis: One of :data:`BASES`.
        scale: λ.
        seed: Of the randomised SVD.
        keep_inputs: Activation statistics of what to keep; they add up.
        epsilon: Ridge of the statistics, or of the keep tasks for the side ``soft``, relative to
            the mean of the diagonal: the smaller, the stronger the damping; 0 leaves the span
            untouched. By default :data:`INPUTS_EPSILON` or
            :data:`~weightsurgery.algebra.discriminate.SOFT_EPSILON`.
    """

    task: TaskVector
    keep: tuple[TaskVector, ...]
    rank: RankRule = field(default_factory=lambda: Rank(64))
    keep_rank: RankRule | None = None
    side: str = "right"
    basis: str = "joint"
    scale: float = 1.0
    seed: int = 0
    keep_inputs: tuple[InputStatistics, ...] = ()
    epsilon: float | None = None
    factors: ClassVar[bool] = True
    role: ClassVar[str] = "forget"

    def __post_init__(self) -> None:
        if not self.keep and not self.keep_inputs:
            raise EditError("no task to keep", "Pass --keep, or use plain negate or add.")
        check_scales(self.scale, self.task, *self.keep)
        for vector in self.keep:
            if not any(factor for factor, _ in vector.terms):
                raise EditError(
                    f"keep {vector.label}: every factor is zero, so nothing would be kept",
                    "Give it another factor.",
                )
        if self.side not in SIDES:
            raise EditError(f"side {self.side!r}", one_of(self.side, SIDES))
        if self.basis not in BASES:
            raise EditError(f"basis {self.basis!r}", one_of(self.basis, BASES))
        if self.side == "soft" and self.keep_inputs:
            raise EditError(
                "side soft with activation statistics to keep: each would have a ridge of its own",
                "Keep vectors alone, or choose another side, such as right.",
            )
        check_epsilon(self.ridge)

    @property
    def ridge(self) -> float:
        """ε, as given or by default."""
        if self.epsilon is not None:
            return self.epsilon
        return SOFT_EPSILON if self.side == "soft" else INPUTS_EPSILON

    def vectors(self) -> Mapping[str, TaskVector]:
        """See :class:`~weightsurgery.surgery.edit.Edit`."""
        keeps = {f"keep{number}": vector for number, vector in enumerate(self.keep, 1)}
        return {self.role: self.task, **keeps}

    def statistics(self) -> Mapping[str, InputStatistics]:
        """See :class:`~weightsurgery.surgery.edit.Edit`."""
        return {
            f"keep_inputs{number}": statistics
            for number, statistics in enumerate(self.keep_inputs, 1)
        }

    def check_statistics(self, base: Checkpoint, names: Iterable[str]) -> None:
        """See :class:`~weightsurgery.surgery.edit.Edit`.

        Raises:
            MismatchError: A tensor that the task changes has none, or of another width.
        """
        for name in names:
            width = input_width(base, name)
            for statistics in self.keep_inputs:
                if statistics.width(name) != width and self.task.rows_at(name) is not None:
                    check_width(statistics, name, width)

    def parameters(self) -> Mapping[str, Any]:
        """See :class:`~weightsurgery.surgery.edit.Edit`."""
        ridge = {"epsilon": self.ridge} if self.keep_inputs or self.side == "soft" else {}
        return {
            "scale": self.scale,
            "rank": str(self.rank),
            "keep_rank": str(self.keep_rank or self.rank),
            "side": self.side,
            "basis": self.basis,
            "seed": self.seed,
            **ridge,
        }

    def most_factors(self) -> int | None:
        """See :class:`~weightsurgery.surgery.edit.Edit`."""
        if not isinstance(self.rank, Rank):
            return None
        rule = self.keep_rank or self.rank
        if self.side in ("right", "left", "both", "soft") or not self.keep:
            return self.rank.k
        if not isinstance(rule, Rank):
            return None
        return self.rank.k + max(self.rank.k, rule.k * len(self.keep))

    def prepare(self, base: Checkpoint, name: str, device: torch.device | str) -> Prepared | None:
        """See :class:`~weightsurgery.surgery.edit.Edit`.

        The plan has refused tensors that are neither matrices nor stacks of them.
        """
        entry = base.entry(name)
        if not is_stack(entry):
            decomposed = self.decompose(base, name, device)
            return None if decomposed is None else self._prepared(base, name, decomposed, device)
        if self.task.rows_at(name) is None:
            return None
        prepared = [
            self._prepared(base, name, decomposed, device)
            for number in range(entry.shape[0])
            if (decomposed := self.decompose(base, name, device, number)) is not None
        ]
        factors = [matrix.delta for matrix in prepared if isinstance(matrix.delta, FactorDelta)]
        return Prepared(StackDelta.of(factors), _of_stack([matrix.facts for matrix in prepared]))

    def _prepared(
        self, base: Checkpoint, name: str, decomposed: Decomposed, device: torch.device | str
    ) -> Prepared:
        """The discriminated task of one matrix."""
        task = decomposed.task.factors
        keep = self.keep_space(decomposed)
        change = self.discriminated(task, keep)
        responses: dict[str, float] = {}
        if self.keep_inputs:
            gram = total_gram(self.keep_inputs, name, input_width(base, name)).to(device)
            change, responses = self._damped(task, change, self.untouched(keep), gram)
        change = or_nothing(change, task)
        facts = {
            "rank": change.rank,
            "kept_energy": round(decomposed.task.kept, 6),
            "svd_residual": float(f"{decomposed.task.residual:.3g}"),
            "survived": round(change.energy / task.energy, 9) if task.energy > 0 else 0.0,
            "keep_ranks": [truncation.factors.rank for truncation in decomposed.keeps],
            **responses,
        }
        return Prepared(decomposed.stored(change), facts)

    def decompose(
        self, base: Checkpoint, name: str, device: torch.device | str, number: int | None = None
    ) -> Decomposed | None:
        """The leading factors of the task and keep tasks; None where the task changes no matrix.

        Args:
            base: The base.
            name: A tensor.
            device: Where to decompose.
            number: Which matrix of a stack; None of a matrix.

        Raises:
            NonFiniteError: A change holds NaN or infinity.
        """
        entry = base.entry(name)
        delta = self.task.at(name)
        if delta is None or (number is None and not is_matrix(entry)):
            return None
        transposed = is_in_out(base, name)
        m, n = entry.shape[-2:]
        first = 0 if number is None else number * m

        def truncated(sum_delta: SumDelta, rule: RankRule) -> Truncation:
            if number is not None:
                sum_delta = sum_delta.of_matrix(number, m)
            return sum_delta.truncated(
                lambda start, stop: base.rows(name, first + start, first + stop),
                (m, n),
                rule,
                transposed=transposed,
                device=device,
                seed=self.seed,
            )

        task = truncated(delta, self.rank)
        rule = self.keep_rank or self.rank
        # A vector that is named twice is decomposed once.
        known = {(self.task.identity(), self.rank): task}
        keeps = []
        for vector in self.keep:
            change = vector.at(name)
            if change is None:
                continue
            key = vector.identity(), rule
            if key not in known:
                known[key] = truncated(change, rule)
            keeps.append(known[key])
        return Decomposed(task, tuple(keeps), transposed)

    def keep_space(self, decomposed: Decomposed) -> KeepSpace | None:
        """The span of the keep tasks; None where none of them changes the tensor."""
        factors = [truncation.factors for truncation in decomposed.keeps]
        return KeepSpace.of(factors, self.basis) if factors else None

    def discriminated(self, task: LowRank, keep: KeepSpace | None) -> LowRank:
        """The task less what it shares with the keep tasks."""
        return task if keep is None else discriminate(task, keep, self.side, self.ridge)

    def untouched(self, keep: KeepSpace | None) -> torch.Tensor | None:
        """Input directions, ``(n, q)``, that the discriminated task leaves untouched, or None."""
        if keep is not None and self.basis == "joint" and self.side in ("right", "both"):
            return keep.V
        return None

    def _damped(
        self, task: LowRank, change: LowRank, untouched: torch.Tensor | None, gram: torch.Tensor
    ) -> tuple[LowRank, dict[str, float]]:
        """Apply the ridge of the inputs; also returns the share of the response that is left."""
        before = response(task, gram)
        if untouched is not None:
            trace = float(gram.trace())
            gram = outside(gram, untouched)  # the change vanishes elsewhere: same response
            if float(gram.trace()) <= _NOTHING_OUTSIDE * trace:
                gram = torch.zeros_like(gram)
        change = keep_inputs(change, gram, self.ridge)
        after = response(change, gram)
        return change, {"response": float(f"{after / before:.6g}") if before > 0 else 0.0}


@dataclass(frozen=True)
class Project(_Discriminating):
    """UNLEARN: ``W' = W − λ T'``.

    Example::

        with Checkpoint.open("base") as base:
            forget, keep = (open_vector(base, [name]) for name in ("forget", "keep"))
            apply(Project(forget, (keep,), Rank(32), scale=1.5), base, "edited")
    """

    name: ClassVar[str] = "project"
    sign: ClassVar[int] = -1


@dataclass(frozen=True)
class Learn(_Discriminating):
    """LEARN: ``W' = W + λ T'``."""

    name: ClassVar[str] = "learn"
    sign: ClassVar[int] = 1
    role: ClassVar[str] = "task"
