"""The singular values that a page shows of an output, and what they are of."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from weightsurgery.checkpoint.digests import file_sha256
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.checkpoint.source import resolve_source
from weightsurgery.errors import WeightSurgeryError
from weightsurgery.report.matrices import spectra_of

__all__ = ["Shown", "shown", "spectra_of_output"]

Progress = Callable[[str, int, int], None]

_SIZES = ("norm", "relative_change", "relative")  # how much a tensor changed, the first there is


@dataclass(frozen=True)
class Shown:
    """Singular values for a page.

    Attributes:
        values: By tensor, descending.
        note: What they are of.
        unknown: Why those of a tensor are not there, as the rest of a sentence.
    """

    values: Mapping[str, Sequence[float]] = field(default_factory=dict)
    note: str = ""
    unknown: str = ""


def shown(spectra: Any) -> Shown:
    """The result of :func:`weightsurgery.surgery.spectra.leading_spectra`, for a page."""
    from weightsurgery.surgery.spectra import ELEMENTS, LEADING

    unfactored = len(spectra.values) - len(spectra.whole)
    note = []
    if unfactored:
        error = f", each to {spectra.residual:.0e} of the largest" if spectra.residual else ""
        note.append(
            f"Of a change that is not held in factors the leading {LEADING} singular values are"
            f" shown{error}."
        )
    if spectra.left_out:
        note.append(
            f"They are of the matrices that changed most, {ELEMENTS / 1e9:.1f} billion numbers"
            f" together at most; not decomposed: {spectra.left_out:,}."
        )
    why = "this matrix was not decomposed" if spectra.left_out else "this is no matrix that changed"
    return Shown(spectra.values, " ".join(note), why)


def spectra_of_output(
    document: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], progress: Progress | None = None
) -> Shown:
    """Singular values of what an output changed.

    Those of the vector it was made with, where that is saved in factors; else of the change itself,
    as it was written, against the base that the record names.

    Args:
        document: A record as a dictionary, with ``out`` where the output is, and ``vector``.
        rows: The figures of every tensor.
        progress: Called as ``progress(stage, done, total)`` in bytes.
    """
    of_vector = document.get("kind") == "task-vector"
    vector = document.get("vector") or (document if of_vector else {})
    out = document.get("out")
    directory = vector.get("path") or out
    if directory is not None and vector and (known := spectra_of(directory)):
        survived = any("survived" in row for row in rows)
        note = "Singular values are of the task as it was saved, before discrimination."
        return Shown(known, note if survived else "")
    if out is None or document.get("kind") not in ("checkpoint", "adapter", "task-vector"):
        return Shown()
    base = _base(document.get("inputs", {}).get("base", {}))
    if base is None:
        return Shown(unknown="the base that the record names is not at hand")
    from weightsurgery.surgery.spectra import leading_spectra
    from weightsurgery.vectors.sources import open_vector

    sizes = {str(row["name"]): _size(row) for row in rows}
    try:
        with Checkpoint.open(base) as opened:
            change = open_vector(opened, [os.fspath(out)])
            try:
                return shown(leading_spectra(opened, change, sizes, progress=progress))
            finally:
                change.close()
    except WeightSurgeryError as error:  # the page is of the record, which needs no base
        return Shown(unknown=error.what)


def _size(row: Mapping[str, Any]) -> float:
    return next((float(row[key]) for key in _SIZES if row.get(key) is not None), 0.0)


def _base(known: Mapping[str, Any]) -> Path | None:
    """Where the base still is, with the bytes that the record names; the network is not used."""
    name, revision = str(known.get("name", "")), known.get("revision")
    try:
        source = name if revision is None else f"{name.partition('@')[0]}@{revision}"
        path = resolve_source(source, local_only=True).path
        files = dict(known.get("files", {}))
        same = all(file_sha256(path / file) == digest for file, digest in files.items())
    except (WeightSurgeryError, OSError):
        return None
    return path if files and same else None
