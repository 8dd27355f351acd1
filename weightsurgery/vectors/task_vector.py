"""Task vectors: linear combinations of changes to one base, read tensor by tensor.

A :class:`Change` is one source (a fine-tuned checkpoint, a saved vector, an adapter); a
:class:`TaskVector` is a weighted sum of them (Ilharco et al. 2023, arXiv 2212.04089).
Neither holds weights: ``at(name)`` opens one tensor's :class:`~weightsurgery.vectors.deltas.Delta`,
and that hands out rows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from weightsurgery.algebra.lowrank import LowRank
from weightsurgery.deferred import torch
from weightsurgery.vectors.deltas import Delta, DenseDelta, FactorDelta, SumDelta

__all__ = ["Change", "MappedChange", "TaskVector"]


class Change(Protocol):
    """A change of a base, from any source.

    Attributes:
        label: Name for messages and reports.
    """

    label: str

    def at(self, name: str) -> Delta | None:
        """The change of one of the base's tensors; None where it does not change."""
        ...

    def rows_at(self, name: str) -> bool | None:
        """Whether :meth:`at` gives a :class:`DenseDelta`; None where it gives None.

        Nothing is read for it, where :meth:`at` reads factors.
        """
        ...

    def provenance(self) -> Mapping[str, Any]:
        """Kind, name and revision for the record, with ``paths`` of the files that are read."""
        ...


@dataclass(frozen=True)
class MappedChange:
    """A change held in memory, for tests and for vectors that were just computed.

    Attributes:
        deltas: By name: a dense difference of the base tensor's shape, or factors.
        label: Name for messages and reports.
    """

    deltas: Mapping[str, torch.Tensor | LowRank]
    label: str = "memory"

    def at(self, name: str) -> Delta | None:
        """See :class:`Change`."""
        delta = self.deltas.get(name)
        if delta is None:
            return None
        if isinstance(delta, LowRank):
            return FactorDelta.of(delta)
        dense = delta.reshape(-1, delta.shape[-1]) if delta.ndim > 1 else delta.reshape(-1)
        return DenseDelta(lambda start, stop: dense[start:stop].clone())

    def rows_at(self, name: str) -> bool | None:
        """See :class:`Change`."""
        delta = self.deltas.get(name)
        return None if delta is None else not isinstance(delta, LowRank)

    def provenance(self) -> Mapping[str, Any]:
        """See :class:`Change`; with a digest of the content, as there is no file."""
        digest = hashlib.sha256()
        for name, delta in sorted(self.deltas.items()):
            parts = (delta.U, delta.S, delta.V) if isinstance(delta, LowRank) else (delta,)
            for part in parts:
                digest.update(f"{name}\0{part.dtype}\0{tuple(part.shape)}\0".encode())
                digest.update(part.contiguous().reshape(-1).view(torch.uint8).cpu().numpy().data)
        return {"kind": "memory", "name": self.label, "sha256": digest.hexdigest(), "paths": []}


@dataclass(frozen=True)
class TaskVector:
    """A weighted sum of changes; ``+``, ``-`` and ``scalar *`` combine without reading.

    Attributes:
        terms: Factors and the changes they scale.
    """

    terms: tuple[tuple[float, Change], ...]

    @classmethod
    def of(cls, change: Change, scale: float = 1.0) -> TaskVector:
        """A vector of one change."""
        return cls(((float(scale), change),))

    def __add__(self, other: TaskVector) -> TaskVector:
        return TaskVector(self.terms + other.terms)

    def __sub__(self, other: TaskVector) -> TaskVector:
        return self + (-1.0) * other

    def __mul__(self, scale: float) -> TaskVector:
        return TaskVector(tuple((scale * factor, change) for factor, change in self.terms))

    __rmul__ = __mul__

    def __neg__(self) -> TaskVector:
        return -1.0 * self

    @property
    def label(self) -> str:
        """Name for messages and reports, e.g. ``"authors + 0.5 painters"``."""
        parts = [
            change.label if factor == 1 else f"{factor:g} {change.label}"
            for factor, change in self.terms
        ]
        return " + ".join(parts)

    def identity(self) -> Hashable:
        """Equal for vectors of the same changes of the same files, opened twice or once."""
        return tuple((factor, _identity(change)) for factor, change in self.terms)

    def notes(self) -> list[str]:
        """How the terms were fitted to the base and what of them is left out, a line each."""
        lines: list[str] = []
        for _, change in self.terms:
            fitted = getattr(change, "fitted", None)
            lines += [] if fitted is None else fitted.notes()
            lines += getattr(change, "notes", ())
        return lines

    def close(self) -> None:
        """Close the terms' files and cancel requests in flight."""
        for _, change in self.terms:
            close = getattr(change, "close", None)
            if close is not None:
                close()

    def at(self, name: str) -> SumDelta | None:
        """One tensor's change; None where no term changes it."""
        terms = [(factor, change.at(name)) for factor, change in self.terms if factor != 0]
        deltas = tuple((factor, delta) for factor, delta in terms if delta is not None)
        return SumDelta(deltas, name, self.label) if deltas else None

    def rows_at(self, name: str) -> bool | None:
        """Whether all terms that change a tensor give rows; None where none changes it."""
        found = [change.rows_at(name) for factor, change in self.terms if factor != 0]
        changed = [each for each in found if each is not None]
        return all(changed) if changed else None


def _identity(change: Change) -> Hashable:
    if isinstance(change, MappedChange):
        return id(change)  # its content would have to be read to tell
    described = dict(change.provenance())
    if not described.get("paths"):
        return id(change)
    return type(change), json.dumps(described, sort_keys=True, default=str)
