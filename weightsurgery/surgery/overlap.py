"""Overlap of tasks, tensor by tensor."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from weightsurgery.algebra.devices import pick_device
from weightsurgery.algebra.discriminate import cosine, overlap, principal_angles
from weightsurgery.algebra.lowrank import LowRank, RankRule
from weightsurgery.checkpoint.layout import TensorEntry
from weightsurgery.checkpoint.naming import is_transposed, kind_of, layer_of
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.checkpoint.selection import Selection
from weightsurgery.errors import EditError
from weightsurgery.progress import Progress
from weightsurgery.surgery.workers import cores, in_order, torch_threads
from weightsurgery.vectors.deltas import SumDelta
from weightsurgery.vectors.finetuned import refuse_quantised
from weightsurgery.vectors.task_vector import TaskVector

__all__ = ["PairOverlap", "TensorOverlap", "overlaps"]


@dataclass(frozen=True)
class PairOverlap:
    """Overlap of two vectors, in one tensor or on average.

    Attributes:
        first: Label of one vector.
        second: Label of the other.
        inputs: Overlap of their input spaces (right singular vectors), in [0, 1].
        outputs: Overlap of their output spaces (left singular vectors), in [0, 1].
        chance: Overlap of two random subspaces of these ranks in the input space.
        cosine: Cosine of the truncated task matrices.
        smallest_angle: Smallest principal angle of the input spaces, in radians.
    """

    first: str
    second: str
    inputs: float
    outputs: float
    chance: float
    cosine: float
    smallest_angle: float


@dataclass(frozen=True)
class TensorOverlap:
    """Overlap of all pairs of vectors in one tensor.

    Attributes:
        name: The tensor.
        kind: Its kind.
        layer: Its layer, or None.
        ranks: Label → rank.
        pairs: One per pair of vectors.
    """

    name: str
    kind: str
    layer: int | None
    ranks: Mapping[str, int]
    pairs: tuple[PairOverlap, ...]


def overlaps(
    base: Checkpoint,
    vectors: Mapping[str, TaskVector],
    rule: RankRule,
    *,
    selection: Selection | None = None,
    device: str = "auto",
    workers: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[tuple[TensorOverlap, ...], tuple[PairOverlap, ...]]:
    """Overlap of tasks: principal angles and overlap of their leading subspaces.

    Args:
        base: The base of all vectors.
        vectors: Label → vector; at least two.
        rule: Number of factors per vector to compare.
        selection: Which tensors; by default all linear layers. Only matrices count.
        device: Where matrices are decomposed.
        workers: Threads.
        seed: Of the randomised SVD.
        progress: Called as ``progress(stage, done, total)`` in bytes.

    Returns:
        The pairs of every tensor that at least two vectors change, and the pairs' means over
        tensors.

    Raises:
        EditError: Fewer than two vectors, or no such device.
        UnsupportedCheckpointError: The base is quantised.
        SelectionError: Nothing is selected.
    """
    if len(vectors) < 2:
        raise EditError("one vector overlaps with nothing", "Name at least two vectors.")
    refuse_quantised(base)
    torch_device = pick_device(device)
    names = (selection or Selection("all-linear")).resolve(base.entries)
    entries = [base.entry(name) for name in names if len(base.entry(name).shape) == 2]

    def factors(entry: TensorEntry, delta: SumDelta) -> LowRank:
        return delta.truncated(
            lambda start, stop: base.rows(entry.name, start, stop),
            (entry.shape[0], entry.shape[1]),
            rule,
            transposed=is_transposed(entry.name, base.config),
            device=torch_device,
            seed=seed,
        ).factors

    def overlap_of(entry: TensorEntry) -> TensorOverlap:
        by_label = {
            label: factors(entry, delta)
            for label, vector in vectors.items()
            if (delta := vector.at(entry.name)) is not None
        }
        return TensorOverlap(
            entry.name,
            kind_of(entry.name),
            layer_of(entry.name),
            {label: low_rank.rank for label, low_rank in by_label.items()},
            tuple(_pair(a, by_label[a], b, by_label[b]) for a, b in combinations(by_label, 2)),
        )

    rows, done, total = [], 0, sum(entry.nbytes for entry in entries)
    with torch_threads(1):
        for row in in_order(overlap_of, entries, workers or min(cores(), 2)):
            done += base.entry(row.name).nbytes
            if progress is not None:
                progress("overlap", done, total)
            if row.pairs:
                rows.append(row)
    if not rows:
        raise EditError(
            "no selected matrix is changed by two of the vectors",
            "Widen --targets, --include, --exclude or --layers.",
        )
    return tuple(rows), tuple(
        _mean([pair for row in rows for pair in row.pairs if (pair.first, pair.second) == key])
        for key in combinations(vectors, 2)
        if any((p.first, p.second) == key for row in rows for p in row.pairs)
    )


def _pair(first: str, a: LowRank, second: str, b: LowRank) -> PairOverlap:
    empty = a.energy == 0 or b.energy == 0
    return PairOverlap(
        first,
        second,
        inputs=0.0 if empty else overlap(a.V, b.V),
        outputs=0.0 if empty else overlap(a.U, b.U),
        chance=max(a.rank, b.rank) / a.shape[1],
        cosine=cosine(a, b),
        smallest_angle=math.pi / 2 if empty else float(principal_angles(a.V, b.V)[0]),
    )


def _mean(pairs: Sequence[PairOverlap]) -> PairOverlap:
    def average(name: str) -> float:
        values = [getattr(pair, name) for pair in pairs]
        return float(sum(values)) / len(values)

    numbers = ("inputs", "outputs", "chance", "cosine", "smallest_angle")
    return PairOverlap(pairs[0].first, pairs[0].second, *(average(name) for name in numbers))
