"""Task vectors on disk: dense differences and low-rank factors in safetensors shards.

A dense change of ``NAME`` is stored under ``NAME``; factors under ``NAME::U`` ``(m, k)``,
``NAME::S`` ``(k,)`` and ``NAME::V`` ``(n, k)``, oriented as the tensor is stored. Tensors that
are not listed do not change. ``weightsurgery.json`` beside them names the origin of the vector, and
holds a few samples of its base to recognise that base by.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from weightsurgery.algebra.lowrank import LowRank
from weightsurgery.checkpoint.digests import file_sha256
from weightsurgery.checkpoint.layout import encode_header
from weightsurgery.checkpoint.names.matching import find_match
from weightsurgery.checkpoint.names.restated import Restated
from weightsurgery.checkpoint.plain_files import new_file, write_whole
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.checkpoint.record import EditRecord, read_record
from weightsurgery.checkpoint.source import Source
from weightsurgery.checkpoint.staging import RECORD_NAME, Staging, output_errors
from weightsurgery.deferred import torch
from weightsurgery.errors import MismatchError, VectorError
from weightsurgery.vectors.deltas import Delta, DenseDelta, FactorDelta, Stored
from weightsurgery.vectors.fitted import LEAST, Fitted, shapes_of

__all__ = ["SavedChange", "VectorWriter", "is_saved_vector"]

_DTYPES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}


def _stored_as(dtype: torch.dtype) -> str:
    return _DTYPES[str(dtype).removeprefix("torch.")]


_FACTORS = ("::U", "::S", "::V")


def is_saved_vector(directory: Path) -> bool:
    """Whether a directory was written as a task vector."""
    if not (directory / RECORD_NAME).is_file():
        return False
    return read_record(directory).kind == "task-vector"


class SavedChange:
    """A saved task vector as a change of a base.

    Args:
        base: The base it is to be applied to; not necessarily the one it was taken from.
        source: Where the vector is.
        missing: ``"error"``, or ``"base"`` to ignore changes of tensors the base does not have.
        partial: Go on where less than half of it, by its squared norm, changes what the base has.

    Attributes:
        fitted: How it fits the base.
        base_names: The base's names of the tensors that it changes, by their names in the vector.

    Raises:
        MismatchError: The vector changes tensors that the base does not have in this shape.
        VectorError: Factors are incomplete.
    """

    def __init__(
        self, base: Checkpoint, source: Source, missing: str = "error", partial: bool = False
    ) -> None:
        self.source = source
        self.label = source.path.name
        self._missing, self._partial = missing, partial
        self.record = read_record(source.path)
        self._weights = Checkpoint.open(source.path)
        self._is_factored: dict[str, bool] = {}  # by the name in the vector
        for key in self._weights.entries:
            name, is_factor = (key[:-3], True) if key.endswith(_FACTORS) else (key, False)
            self._is_factored[name] = is_factor
        shapes = {name: self._shape(name) for name in self._is_factored}
        match = find_match(shapes_of(base), shapes, source.name)
        self._factors: dict[str, str] = {}  # by the base's name: the name in the vector
        dense = {}
        for name, place in match.places.items():
            if not any(self._is_factored[stored] for stored in place.names):
                dense[name] = place
            elif len(place.blocks) == 1 and place.blocks[0].run is not None:
                self._factors[name] = place.names[0]
            else:
                continue
            if place.shape != base.entry(name).shape:
                raise MismatchError(
                    f"{source.name}: changes {place.names[0]!r} of shape {list(place.shape)}; in"
                    f" {base.source.name} it is {list(base.entry(name).shape)}",
                    "Use the base it was taken from.",
                )
        # From the tensors of the base it was taken from to those of this one.
        self.base_names = {
            place.names[0]: name
            for name, place in match.places.items()
            if len(place.names) == 1 and place.shape == shapes[place.names[0]]
        }
        self._dense = self._weights
        if not match.is_identity:
            self._dense = Restated(self._weights, replace(match, places=dense, rest=()))
        self._names = {n: None for n in match.places if n in self._factors or n in dense}
        used = {stored for name in self._names for stored in match.places[name].names}
        lost = [name for name in shapes if name not in used]
        self.fitted = Fitted(
            self.label, len(used), len(shapes), self._share(lost), names=match.facts()
        )
        if lost and missing == "error":
            remedy = "Use the base it was taken from, or pass --missing base."
            if self.fitted.share < LEAST:
                remedy = "Use the base it was taken from: most of the vector is of such tensors."
            raise MismatchError(
                f"{source.name}: changes {lost[0]!r}, which {base.source.name} does not have"
                f" ({len(lost)} of its {len(shapes)} tensors are such)",
                remedy,
            )
        self.fitted.check(partial)

    def _shape(self, name: str) -> tuple[int, ...]:
        entries = self._weights.entries
        if not self._is_factored[name]:
            return entries[name].shape
        u, s, v = (entries.get(name + end) for end in _FACTORS)
        if u is None or s is None or v is None or not u.shape[1:] == s.shape == v.shape[1:]:
            raise VectorError(
                f"{self.source.name}: the factors of {name!r} are incomplete",
                "Save the vector again with 'ws subspace' or 'ws diff -o'.",
            )
        return u.shape[0], v.shape[0]

    def _share(self, lost: Sequence[str]) -> float:
        """The share of the squared norm outside the lost tensors."""
        if not lost:
            return 1.0
        whole = {name: self._energy(name) for name in self._is_factored}
        total = math.fsum(whole.values())
        return 1 - math.fsum(whole[name] for name in lost) / total if total > 0 else 1.0

    def _energy(self, name: str) -> float:
        if self._is_factored[name]:
            return float(self._weights.tensor(f"{name}::S").double().square().sum())
        return math.fsum(
            float(self._weights.rows(name, start, stop).double().square().sum())
            for start, stop in self._weights.entry(name).blocks()
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the tensors it changes."""
        return tuple(self._names)

    def at(self, name: str) -> Delta | None:
        """See :class:`weightsurgery.vectors.task_vector.Change`."""
        factored = self._factors.get(name)
        if factored is not None:
            u, s, v = (self._weights.tensor(factored + end).float() for end in _FACTORS)
            return FactorDelta.of(LowRank(u, s, v))
        if name not in self._names:
            return None
        return DenseDelta(
            lambda start, stop: self._dense.rows(name, start, stop),
            stored=Stored(self._dense, self._dense.entry(name)),
        )

    def rows_at(self, name: str) -> bool | None:
        """See :class:`weightsurgery.vectors.task_vector.Change`."""
        return name not in self._factors if name in self._names else None

    def provenance(self) -> Mapping[str, Any]:
        """See :class:`weightsurgery.vectors.task_vector.Change`."""
        return {
            "kind": "task-vector",
            "name": self.source.name,
            "revision": self.source.revision,
            "missing": self._missing,
            "fitted": self.fitted.facts(),
            **({"partial": True} if self._partial else {}),
            "paths": self._weights.files_read(),
        }


class VectorWriter:
    """Writes a task vector tensor by tensor, in shards of bounded size, all or nothing.

    Use as a context manager: an exception removes everything, :meth:`commit` makes it whole. In a
    staging of the caller's, files stay after an error that is none of ours.

    Args:
        target: Directory to be written.
        inputs: Directories that are read.
        overwrite: Replace an existing output.
        shard_bytes: Size at which a shard is closed; so much is held in memory.
        stem: Prefix of the names of shards and index.
        staging: Where to write, if the caller has a staging for the target already.
        identity: Digest of the vector's inputs and settings. A killed extraction starts again; one
            that was killed after the final rename finds the vector whole.

    Attributes:
        complete: Such a vector is there, and nothing is to be written.
    """

    def __init__(
        self,
        target: Path,
        inputs: Sequence[Path],
        overwrite: bool = False,
        shard_bytes: int = 1 << 27,
        stem: str = "vector",
        staging: Staging | None = None,
        identity: str = "",
    ) -> None:
        identity = identity or f"vector {os.getpid()} {id(self)}"  # this process's own
        self._staging = staging or Staging(target, identity, inputs, overwrite)
        self._lent = staging is not None
        self.complete = self._staging.complete
        self._limit = shard_bytes
        self._stem = stem
        self._pending: dict[str, torch.Tensor] = {}
        self._weight_map: dict[str, str] = {}
        self._shards: list[str] = []
        self._total = 0

    def __enter__(self) -> VectorWriter:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self._lent and error is not None:
            self._staging.give_up(error)
        else:
            self._staging.close()

    def add(self, name: str, change: torch.Tensor | LowRank) -> None:
        """Add one tensor's change."""
        if isinstance(change, LowRank):
            for end, factor in zip(_FACTORS, (change.U, change.S, change.V), strict=True):
                self._pending[name + end] = factor
        else:
            self._pending[name] = change
        if sum(t.numel() * t.element_size() for t in self._pending.values()) >= self._limit:
            self._write_shard()

    def _write_shard(self) -> None:
        shard = f"{self._stem}-{len(self._shards) + 1:05d}.safetensors"
        tensors = {name: tensor.contiguous() for name, tensor in self._pending.items()}
        header = encode_header(
            [(name, _stored_as(t.dtype), tuple(t.shape)) for name, t in tensors.items()],
            {"format": "pt"},
        )
        with output_errors(self._staging.target), new_file(self._staging.files / shard) as file:
            file.write(header)
            for tensor in tensors.values():
                file.write(tensor.reshape(-1).view(torch.uint8).numpy().data)
                self._total += tensor.numel() * tensor.element_size()
        self._weight_map |= dict.fromkeys(tensors, shard)
        self._shards.append(shard)
        self._pending.clear()

    def commit(self, record: EditRecord) -> EditRecord:
        """Write index and record, and put the vector in its place.

        Raises:
            VectorError: Nothing was added.
        """
        if self._pending:
            self._write_shard()
        if not self._shards:
            raise VectorError(
                f"{self._staging.target}: nothing to save, no selected tensor changes",
                "Check --targets, --include and --layers, and that the two models differ.",
            )
        files = self._staging.files
        index_name = f"{self._stem}.safetensors.index.json"
        index = {"metadata": {"total_size": self._total}, "weight_map": self._weight_map}
        with output_errors(self._staging.target):
            write_whole(files / index_name, json.dumps(index, indent=1) + "\n")
            record.files = {
                name: {"sha256": file_sha256(files / name), "bytes": (files / name).stat().st_size}
                for name in [*self._shards, index_name]
            }
            write_whole(files / RECORD_NAME, record.to_json())
        self._staging.commit([*record.files, RECORD_NAME])
        return record
