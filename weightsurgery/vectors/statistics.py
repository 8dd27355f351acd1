"""Activation statistics: second moments ``C = Σ x xᵀ`` of the inputs of a model's linear layers.

A layer with inputs ``x`` of width ``n`` is described by the float32 ``(n, n)`` matrix ``C``, summed
over tokens. Layers that share one input (queries, keys and values; gate and up) share one matrix,
stored under the first one's name. ``weightsurgery.json`` beside the shards maps each tensor to its
matrix under ``tensors``, counts tokens, names model and data, and holds a few samples of the model
to recognise it by, as a saved vector does.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.checkpoint.record import EditRecord, read_record
from weightsurgery.checkpoint.source import Source, resolve_source
from weightsurgery.checkpoint.staging import RECORD_NAME
from weightsurgery.deferred import torch
from weightsurgery.errors import EditError, MismatchError, NonFiniteError, VectorError
from weightsurgery.vectors.saved import VectorWriter

__all__ = [
    "InputStatistics",
    "MappedStatistics",
    "Statistics",
    "StatisticsWriter",
    "WeightedStatistics",
    "check_width",
    "is_statistics",
    "total_gram",
]

KIND = "activation-statistics"


class InputStatistics(Protocol):
    """A source of activation statistics.

    Attributes:
        label: Name for messages and reports.
    """

    @property
    def label(self) -> str:
        """Name for messages and reports."""
        ...

    def width(self, name: str) -> int | None:
        """Input width ``n`` of a tensor, known without reading; None without statistics of it."""
        ...

    def for_tensor(self, name: str) -> torch.Tensor | None:
        """``C`` of a tensor's inputs, ``(n, n)``, float32 or float64; None without statistics."""
        ...

    def provenance(self) -> Mapping[str, Any]:
        """Kind, name and revision for the record, with ``paths`` of the files that are read."""
        ...


def is_statistics(directory: Path) -> bool:
    """Whether a directory was written as activation statistics."""
    if not (directory / RECORD_NAME).is_file():
        return False
    return read_record(directory).kind == KIND


class Statistics:
    """Saved activation statistics: opening reads headers alone, matrices are read lazily.

    Args:
        source: Where they are.

    Attributes:
        source: Where they are.
        label: Name for messages and reports.
        record: How they were made.

    Raises:
        VectorError: Not activation statistics, or a matrix is missing or not square float32.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self.label = source.path.name
        self.record = read_record(source.path)
        if self.record.kind != KIND:
            raise VectorError(
                f"{source.name}: holds a {self.record.kind}, not activation statistics",
                "Gather them with 'ws identify --mode activations'.",
            )
        self._weights = Checkpoint.open(source.path)
        self._keys = {name: self._key(name, facts) for name, facts in self.record.tensors.items()}

    @classmethod
    def open(cls, name: str | os.PathLike[str]) -> Statistics:
        """Open a directory or ``org/name[@revision]``."""
        return cls(resolve_source(name))

    def _key(self, name: str, facts: Mapping[str, Any]) -> str:
        key = facts.get("input") if isinstance(facts, Mapping) else None
        entry = self._weights.entries.get(key) if isinstance(key, str) else None
        if entry is None or entry.dtype != "F32" or entry.shape != (entry.rows, entry.rows):
            raise VectorError(
                f"{self.source.name}: no square float32 matrix for {name!r}",
                "Gather the statistics again with 'ws identify --mode activations'.",
            )
        return entry.name

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the tensors with statistics."""
        return tuple(self._keys)

    def width(self, name: str) -> int | None:
        """See :class:`InputStatistics`."""
        key = self._keys.get(name)
        return None if key is None else self._weights.entry(key).shape[0]

    def for_tensor(self, name: str) -> torch.Tensor | None:
        """See :class:`InputStatistics`; float32, in memory of its own."""
        key = self._keys.get(name)
        return None if key is None else self._weights.tensor(key)

    def provenance(self) -> Mapping[str, Any]:
        """See :class:`InputStatistics`."""
        return {
            "kind": KIND,
            "name": self.source.name,
            "revision": self.source.revision,
            # The record too: it maps tensors to matrices.
            "paths": [*self._weights.files_read(), self.source.path / RECORD_NAME],
        }


@dataclass(frozen=True)
class MappedStatistics:
    """Activation statistics held in memory, for tests and for those just gathered.

    Attributes:
        grams: ``C`` by tensor name, ``(n, n)``; tensors with one input may share one matrix.
        label: Name for messages and reports.
    """

    grams: Mapping[str, torch.Tensor]
    label: str = "statistics in memory"

    def width(self, name: str) -> int | None:
        """See :class:`InputStatistics`."""
        gram = self.grams.get(name)
        return None if gram is None else gram.shape[0]

    def for_tensor(self, name: str) -> torch.Tensor | None:
        """See :class:`InputStatistics`."""
        return self.grams.get(name)

    def provenance(self) -> Mapping[str, Any]:
        """See :class:`InputStatistics`; with a digest of the content."""
        digest = hashlib.sha256()
        for name, gram in sorted(self.grams.items()):
            digest.update(f"{name}\0{gram.dtype}\0{tuple(gram.shape)}\0".encode())
            digest.update(gram.contiguous().reshape(-1).view(torch.uint8).cpu().numpy().data)
        return {"kind": "memory", "name": self.label, "sha256": digest.hexdigest(), "paths": []}


@dataclass(frozen=True)
class WeightedStatistics:
    """``weight · C``: as if every token counted ``weight`` times.

    Attributes:
        statistics: The statistics to weight.
        weight: Positive and finite; a negative one would make keep inputs count as forget inputs.

    Raises:
        EditError: Another weight.
    """

    statistics: InputStatistics
    weight: float

    def __post_init__(self) -> None:
        if not 0 < self.weight <= 1e30:
            raise EditError(
                f"weight {self.weight} of the statistics {self.statistics.label}",
                "Give a positive number, up to 1e30.",
            )

    @property
    def label(self) -> str:
        """Name for messages and reports."""
        return f"{self.weight:g} {self.statistics.label}"

    def width(self, name: str) -> int | None:
        """See :class:`InputStatistics`."""
        return self.statistics.width(name)

    def for_tensor(self, name: str) -> torch.Tensor | None:
        """See :class:`InputStatistics`; float64."""
        gram = self.statistics.for_tensor(name)
        return None if gram is None else self.weight * gram.double()

    def provenance(self) -> Mapping[str, Any]:
        """See :class:`InputStatistics`."""
        return {**self.statistics.provenance(), "weight": self.weight}


def total_gram(statistics: Sequence[InputStatistics], name: str, width: int) -> torch.Tensor:
    """``Σ C`` of one tensor over all statistics.

    Args:
        statistics: At least one; each must have the tensor.
        name: The tensor.
        width: Input width ``n`` of the tensor.

    Returns:
        Shape ``(n, n)``, float64, in memory of its own.

    Raises:
        MismatchError: Statistics without this tensor, or of another width.
        NonFiniteError: NaN or infinity in the sum.
    """
    total = torch.zeros(width, width, dtype=torch.float64)
    for source in statistics:
        check_width(source, name, width)
        gram = source.for_tensor(name)
        assert gram is not None
        total += gram.to("cpu")
        del gram
    if not bool(torch.isfinite(total).all()):
        raise NonFiniteError(
            f"tensor {name!r}: NaN or infinity in the activation statistics"
            f" ({', '.join(source.label for source in statistics)})",
            "Gather them again, in float32 if the model overflows.",
        )
    return total


def check_width(statistics: InputStatistics, name: str, width: int) -> None:
    """Refuse statistics that cannot protect a tensor.

    Raises:
        MismatchError: They lack it, or have it with another input width.
    """
    actual = statistics.width(name)
    if actual == width:
        return
    if actual is None:
        raise MismatchError(
            f"{statistics.label}: no activation statistics of tensor {name!r}",
            "Gather them on this model with 'ws identify --mode activations', or leave the tensor"
            f" as it is with --exclude '{name}'.",
        )
    raise MismatchError(
        f"{statistics.label}: inputs of tensor {name!r} have width {actual}; here it is {width}",
        "Gather the statistics on this model with 'ws identify --mode activations'.",
    )


class StatisticsWriter:
    """Writes activation statistics matrix by matrix, in shards of bounded size, all or nothing.

    Use as a context manager: an exception removes everything, :meth:`commit` makes it whole.

    Args:
        target: Directory to be written.
        inputs: Directories that are read.
        overwrite: Replace an existing output.
        shard_bytes: Size at which a shard is closed; so much is held in memory.
    """

    def __init__(
        self,
        target: Path,
        inputs: Sequence[Path],
        overwrite: bool = False,
        shard_bytes: int = 1 << 26,
    ) -> None:
        self._writer = VectorWriter(target, inputs, overwrite, shard_bytes, "statistics")
        self._tensors: dict[str, dict[str, Any]] = {}

    def __enter__(self) -> StatisticsWriter:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._writer.__exit__(kind, error, trace)

    def add(self, names: Sequence[str], gram: torch.Tensor, tokens: int) -> None:
        """Add the matrix of one input.

        Args:
            names: The tensors that read it; at least one, none of them added before.
            gram: ``C``, shape ``(n, n)``, any floating dtype.
            tokens: How many inputs were summed.

        Raises:
            NonFiniteError: NaN or infinity, also of what overflows float32.
        """
        stored = gram.to("cpu", torch.float32)
        if not bool(torch.isfinite(stored).all()):
            raise NonFiniteError(
                f"tensor {names[0]!r}: NaN or infinity in what it is given",
                "Check the model; a float16 one may need float32.",
            )
        self._writer.add(names[0], stored)
        facts = {"input": names[0], "width": stored.shape[0], "tokens": tokens}
        self._tensors |= {name: dict(facts) for name in names}

    def commit(self, record: EditRecord) -> EditRecord:
        """Write index and record, and put the statistics in their place.

        Args:
            record: Of kind ``"activation-statistics"``; its ``tensors`` are filled in.
        """
        record.kind = KIND
        record.tensors = self._tensors
        return self._writer.commit(record)
