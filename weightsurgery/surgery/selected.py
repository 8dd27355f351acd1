"""How much of a vector lies in the tensors that an edit selects.

By default a discriminating edit leaves embeddings, norms and biases alone, and ``--layers`` leaves
more: where much of a task is there, a notice says so. Changes that are factors are measured
exactly; of others a few rows are read, spread evenly, so that the check costs little.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

from weightsurgery.checkpoint.layout import TensorEntry
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.deferred import torch
from weightsurgery.vectors.deltas import FactorDelta, SumDelta
from weightsurgery.vectors.task_vector import TaskVector

__all__ = ["selected_share"]

# Places in a tensor where rows are read, and elements per place.
_PLACES, _ELEMENTS = 32, 1024


def selected_share(
    base: Checkpoint, vector: TaskVector, chosen: Collection[str], copies: Collection[str] = ()
) -> dict[str, Any]:
    """The share of a vector that lies in the selected tensors.

    Args:
        base: The base.
        vector: The vector.
        chosen: Names of the selected tensors.
        copies: Names of tied copies, which are not counted.

    Returns:
        ``tensors`` that are selected ``of`` those that it changes, their ``share`` of its squared
        norm, and whether that was ``estimated``. A share of 1 where nothing is known to change.
    """
    energies: dict[bool, list[float]] = {True: [], False: []}
    entries = [
        entry
        for entry in base.entries.values()
        if entry.name not in copies and entry.numel and vector.rows_at(entry.name) is not None
    ]
    selected = [entry for entry in entries if entry.name in chosen]
    result: dict[str, Any] = {"tensors": len(selected), "of": len(entries), "share": 1.0}
    if len(selected) == len(entries):
        return result | {"estimated": False}
    estimated = False
    for entry in entries:
        delta = vector.at(entry.name)
        assert delta is not None
        energy = _of_factors(delta)
        if energy is None:
            energy, estimated = _sampled(base, entry, delta), True
        energies[entry.name in chosen].append(energy)
    within, total = math.fsum(energies[True]), math.fsum(energies[True] + energies[False])
    if total > 0 and math.isfinite(total):  # else the edit itself says what is wrong
        result["share"] = float(f"{within / total:.4g}")
    return result | {"estimated": estimated}


def _of_factors(delta: SumDelta) -> float | None:
    """``‖Σ cᵢ Lᵢ Rᵢᵀ‖²`` from the factors' products, or None."""
    terms = [(c, factor) for c, factor in delta.terms if isinstance(factor, FactorDelta)]
    if len(terms) != len(delta.terms):
        return None
    left = torch.cat([c * factor.left.double() for c, factor in terms], 1)
    right = torch.cat([factor.right.double() for _, factor in terms], 1)
    return max(0.0, float(((left.T @ left) * (right.T @ right)).sum()))


def _sampled(base: Checkpoint, entry: TensorEntry, delta: SumDelta) -> float:
    """``‖T‖²``, estimated from a sample of its rows."""
    columns = math.prod(entry.columns)
    rows = max(1, _ELEMENTS // max(1, columns))
    if _PLACES * rows >= entry.rows:
        ranges = list(entry.blocks())
    else:
        last = entry.rows - rows
        starts = sorted({last * place // (_PLACES - 1) for place in range(_PLACES)})
        ranges = [(start, start + rows) for start in starts]
    total, rows_read = 0.0, 0
    for start, stop in ranges:
        before = base.rows(entry.name, start, stop).float()
        change = torch.zeros_like(before)
        delta.add_rows(change, start, stop, 1.0, before)
        total += float(change.double().square().sum())
        rows_read += stop - start
    return total * entry.rows / rows_read
