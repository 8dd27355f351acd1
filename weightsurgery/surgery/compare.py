"""Looking at a change without applying it: how large it is, of what rank, and saving it."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from weightsurgery.algebra.lowrank import LowRank, RankRule
from weightsurgery.algebra.rounding import ChangeStats, round_to
from weightsurgery.checkpoint.layout import TensorEntry
from weightsurgery.checkpoint.naming import kind_of, layer_of
from weightsurgery.checkpoint.reader import Checkpoint, torch_dtype
from weightsurgery.checkpoint.record import EditRecord
from weightsurgery.checkpoint.selection import Selection
from weightsurgery.deferred import torch
from weightsurgery.errors import EditError, NonFiniteError
from weightsurgery.surgery.provenance import folders, hash_files, inputs_of, recorded
from weightsurgery.surgery.stream import Progress
from weightsurgery.surgery.workers import cores, in_order, pick_device, torch_threads
from weightsurgery.vectors.finetuned import refuse_quantised
from weightsurgery.vectors.lineage import Kinship, kinship, samples_of
from weightsurgery.vectors.saved import VectorWriter
from weightsurgery.vectors.task_vector import SumDelta, TaskVector

__all__ = ["Comparison", "TensorDifference", "diff", "effective_rank"]

# Columns of the random sketch that the effective rank is estimated from: about 6 % accuracy.
PROBES = 32
# Up to this many columns the sketch is the identity, and the effective rank exact.
EXACT_PROBES = 256


@dataclass(frozen=True)
class TensorDifference:
    """One tensor's change ``T`` of the base ``W``.

    Attributes:
        name: The tensor.
        kind: Its kind.
        layer: Its layer, or None.
        shape: Its shape.
        norm: ``‖T‖``.
        relative: ``‖T‖ / ‖W‖``.
        cosine: Cosine between ``W`` and ``W + T``.
        effective_rank: Participation ratio ``‖T‖⁴_F / ‖Tᵀ T‖²_F`` of the squared singular
            values: 1 for rank one, ``k`` for ``k`` equal ones. Exact up to 256 columns, else from
            a Gaussian sketch of 32 columns (standard error about 6 %). None for non-matrices.
        sparsity: Fraction of elements that do not change.
        surviving: Fraction of the changed elements for which ``W − T``, rounded to the base's
            dtype, still differs from ``W``: what plain negation would keep.
        rank: Factors kept, if it was decomposed.
        kept: Fraction of ``‖T‖²`` they hold.
        residual: A-posteriori error of the decomposition, relative to the largest factor.
    """

    name: str
    kind: str
    layer: int | None
    shape: tuple[int, ...]
    norm: float
    relative: float
    cosine: float
    effective_rank: float | None
    sparsity: float
    surviving: float
    rank: int | None = None
    kept: float | None = None
    residual: float | None = None


@dataclass(frozen=True)
class Comparison:
    """The differences of all selected tensors.

    Attributes:
        tensors: Those that the vector covers, in the base's order.
        norm: ``‖T‖`` over all of them.
        relative: ``‖T‖ / ‖W‖`` over all of them.
        lineage: Whether each term derives from the base.
        saved: The record of the saved vector, if it was saved.
    """

    tensors: tuple[TensorDifference, ...]
    norm: float
    relative: float
    lineage: tuple[Kinship, ...]
    saved: EditRecord | None = None


def effective_rank(sketch: torch.Tensor, exact: bool) -> float:
    """Participation ratio of a matrix's squared singular values from its sketch ``Y = T Z``.

    With ``G = Yᵀ Y``: if ``Z`` is the identity, ``tr(G)² / ‖G‖²``. If it is Gaussian, the diagonal
    averages to ``‖T‖²`` and the squares off the diagonal to ``‖Tᵀ T‖²``; their ratio varies far
    less than either.

    Args:
        sketch: Shape ``(m, p)``.
        exact: Whether ``Z`` is the identity.
    """
    gram = sketch.double().T @ sketch.double()
    p = gram.shape[0]
    trace = float(gram.diagonal().sum())
    if trace <= 0:
        return 0.0
    if exact or p < 2:
        return trace**2 / float(gram.square().sum())
    off = float(gram.square().sum() - gram.diagonal().square().sum()) / (p * (p - 1))
    return max(1.0, (trace / p) ** 2 / off) if off > 0 else 1.0


def _difference(
    base: Checkpoint, entry: TensorEntry, delta: SumDelta, collect: bool
) -> tuple[TensorDifference, torch.Tensor | None, ChangeStats]:
    """Statistics of one tensor in one pass; the whole change too, if ``collect``."""
    whole = torch.empty(entry.rows, *entry.columns) if collect else None
    is_matrix = len(entry.shape) == 2 and entry.numel > 0
    probe, sketch = None, None
    if is_matrix:
        n = entry.shape[1]
        generator = torch.Generator().manual_seed(0)
        exact = n <= EXACT_PROBES
        probe = torch.eye(n) if exact else torch.randn(n, PROBES, generator=generator)
        sketch = torch.empty(entry.rows, probe.shape[1])
    stored = torch_dtype(entry.dtype)
    stats, inner = ChangeStats(), 0.0
    for start, stop in entry.blocks():
        before = base.rows(entry.name, start, stop).float()
        change = torch.zeros_like(before)
        delta.add_rows(change, start, stop, 1.0, before)
        stats.add(before, change, round_to(before - change, stored).float())
        inner += float(torch.dot(before.reshape(-1), change.reshape(-1)))
        if whole is not None:
            whole[start:stop] = change
        if probe is not None and sketch is not None:
            sketch[start:stop] = change @ probe
    if not math.isfinite(stats.meant + stats.base):
        raise NonFiniteError(
            f"tensor {entry.name!r} ({base.path / entry.shard}): NaN or infinity in the base or in"
            " the change",
            f"Leave it out with --exclude '{entry.name}'.",
        )
    after = stats.base + 2 * inner + stats.meant
    norms = math.sqrt(stats.base * max(0.0, after))
    row = TensorDifference(
        entry.name,
        kind_of(entry.name),
        layer_of(entry.name),
        entry.shape,
        norm=math.sqrt(stats.meant),
        relative=math.sqrt(stats.meant / stats.base) if stats.base > 0 else 0.0,
        cosine=min(1.0, (stats.base + inner) / norms) if norms > 0 else 1.0,
        effective_rank=(
            effective_rank(sketch, sketch.shape[1] == entry.shape[1])
            if sketch is not None
            else None
        ),
        sparsity=1.0 - stats.wanted / entry.numel if entry.numel else 1.0,
        surviving=stats.surviving,
    )
    return row, whole, stats


def diff(
    base: Checkpoint,
    vector: TaskVector,
    *,
    selection: Selection | None = None,
    rule: RankRule | None = None,
    save_to: str | os.PathLike[str] | None = None,
    matrices_only: bool = False,
    overwrite: bool = False,
    device: str = "auto",
    workers: int | None = None,
    seed: int = 0,
    command: Sequence[str] = (),
    progress: Progress | None = None,
) -> Comparison:
    """Describe a change of a base tensor by tensor, and save it if asked to.

    Args:
        base: The base.
        vector: The change.
        selection: Which tensors; by default all.
        rule: Decompose matrices, keeping this many factors.
        save_to: Directory for the task vector: matrices as factors if there is a ``rule``, the
            rest as float32 differences.
        matrices_only: Leave out what is no matrix (``ws subspace``).
        overwrite: Replace an existing output of this tool.
        device: Where matrices are decomposed.
        workers: Threads.
        seed: Of the randomised SVD.
        command: The command line, for the record.
        progress: Called as ``progress(stage, done, total)`` in bytes.

    Raises:
        WeightSurgeryError: See :mod:`weightsurgery.errors`; nothing is saved then.
    """
    refuse_quantised(base)
    selection = selection or Selection()
    where = pick_device(device)
    entries = [
        base.entry(name)
        for name in selection.resolve(base.entries)
        if not matrices_only or len(base.entry(name).shape) == 2
    ]

    def one(entry: TensorEntry) -> tuple[TensorDifference, Any, ChangeStats] | None:
        delta = vector.at(entry.name)
        if delta is None:
            return None
        if rule is None or len(entry.shape) != 2 or entry.numel == 0:
            return _difference(base, entry, delta, collect=save_to is not None)
        row, _, stats = _difference(base, entry, delta, collect=False)
        found = delta.truncated(
            lambda start, stop: base.rows(entry.name, start, stop),
            (entry.shape[0], entry.shape[1]),
            rule,
            device=where,
            seed=seed,
        )
        facts = {
            "rank": found.factors.rank,
            "kept": found.kept,
            "residual": found.residual,
        }
        return TensorDifference(**{**asdict(row), **facts}), found.factors, stats

    lineage = tuple(kinship(base, change) for _, change in vector.terms)
    inputs = inputs_of(base, {"vector": vector})
    # Whole matrices are in flight where they are saved or decomposed.
    count = workers or min(cores(), 8 if rule is None and save_to is None else 2)
    writer = None
    if save_to is not None:
        writer = VectorWriter(Path(save_to), folders(inputs), overwrite)
    done, total = 0, sum(entry.nbytes for entry in entries)
    rows: list[TensorDifference] = []
    sums = ChangeStats()
    saved = None
    with torch_threads(1), writer or nullcontext():
        for entry, result in zip(entries, in_order(one, entries, count), strict=True):
            done += entry.nbytes
            if progress is not None:
                progress("diff", done, total)
            if result is None:
                continue
            row, change, stats = result
            rows.append(row)
            sums.merge(stats)
            if writer is not None:
                factors = isinstance(change, LowRank)
                writer.add(row.name, change if factors else change.reshape(entry.shape))
        if not rows:
            raise EditError(
                f"{vector.label}: changes none of the selected tensors",
                "Widen --targets, --include, --exclude or --layers.",
            )
        if writer is not None:
            record = EditRecord("task-vector", command=list(command))
            record.parameters = {
                "rule": str(rule) if rule is not None else "dense",
                "selection": asdict(selection),
                "seed": seed,
                "base_samples": samples_of(base),
            }
            record.inputs = recorded(inputs, hash_files(inputs, count))
            record.tensors = {
                row.name: {k: v for k, v in asdict(row).items() if k not in ("name", "shape")}
                for row in rows
            }
            record.lineage = [kin.to_dict() for kin in lineage]
            saved = writer.commit(record)
    norm = math.sqrt(sums.meant)
    relative = math.sqrt(sums.meant / sums.base) if sums.base > 0 else 0.0
    return Comparison(tuple(rows), norm, relative, lineage, saved)
