"""Provenance of an output: the base and every term of every vector, by role."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weightsurgery.checkpoint import record
from weightsurgery.checkpoint.digest_cache import declared_digest
from weightsurgery.checkpoint.digests import content_sha256, input_sha256
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.checkpoint.remarks import remarks
from weightsurgery.errors import CorruptCheckpointError
from weightsurgery.surgery.edit import Edit, Run
from weightsurgery.vectors.lineage import check_lineage
from weightsurgery.vectors.statistics import InputStatistics
from weightsurgery.vectors.task_vector import TaskVector

__all__ = [
    "Input",
    "files",
    "folders",
    "hash_files",
    "identity_of",
    "inputs_of",
    "inputs_of_edit",
    "lineage_of_edit",
    "recorded",
]


@dataclass(frozen=True)
class Input:
    """An input of an edit.

    Attributes:
        described: Its entry in the record, besides its files.
        paths: Its files.
    """

    described: Mapping[str, Any]
    paths: Sequence[Path]


def inputs_of(
    base: Checkpoint,
    vectors: Mapping[str, TaskVector],
    statistics: Mapping[str, InputStatistics] | None = None,
) -> dict[str, Input]:
    """The base, the terms of the vectors (numbered where a role has more), and statistics."""
    source = {
        "kind": "checkpoint",
        "name": base.source.name,
        "revision": base.source.revision,
        **({"notes": list(base.notes)} if base.notes else {}),
        **({"remarks": list(oddities)} if (oddities := remarks(base)) else {}),
    }
    inputs = {"base": Input(source, base.files_read())}
    for role, vector in vectors.items():
        for number, (factor, change) in enumerate(vector.terms, 1):
            key = role if len(vector.terms) == 1 else f"{role}.{number}"
            described = {**change.provenance(), "factor": factor}
            inputs[key] = Input(described, described.pop("paths"))
    for role, statistic in (statistics or {}).items():
        described = dict(statistic.provenance())
        inputs[role] = Input(described, described.pop("paths"))
    return inputs


def inputs_of_edit(edit: Edit, base: Checkpoint) -> dict[str, Input]:
    """All that an edit reads, by role."""
    return inputs_of(base, edit.vectors(), edit.statistics())


def lineage_of_edit(edit: Edit, base: Checkpoint, run: Run) -> list[dict[str, Any]]:
    """The record's lineage entries: whether an edit's inputs derive from the base.

    Raises:
        LineageError: An input does not, and may not be unrelated.
    """
    changes = [change for vector in edit.vectors().values() for _, change in vector.terms]
    lineage = check_lineage(base, [*changes, *edit.statistics().values()], run.allow_unrelated)
    return [kin.to_dict() for kin in lineage]


def folders(inputs: Mapping[str, Input]) -> list[Path]:
    """The directories that are read, which no output may touch."""
    return sorted({path.parent for source in inputs.values() for path in source.paths})


def files(inputs: Mapping[str, Input]) -> list[Path]:
    """All files of all inputs, without duplicates."""
    return list(dict.fromkeys(path for source in inputs.values() for path in source.paths))


def identity_of(inputs: Mapping[str, Input], **described: Any) -> str:
    """See :func:`weightsurgery.checkpoint.record.identity_of`."""
    read = {role: (source.described, source.paths) for role, source in inputs.items()}
    return record.identity_of(read, **described)


def hash_files(inputs: Mapping[str, Input], workers: int) -> dict[Path, str]:
    """SHA-256 by file."""
    paths = files(inputs)
    with ThreadPoolExecutor(workers, "ws") as pool:
        return dict(zip(paths, pool.map(input_sha256, paths), strict=True))


def recorded(inputs: Mapping[str, Input], digests: Mapping[Path, str]) -> dict[str, Any]:
    """The record's entries of the inputs.

    The digest of a file on the Hub that was read in parts is the server's: it is compared once all
    of the file was fetched; until then the file is named under ``unverified``.

    Raises:
        CorruptCheckpointError: A fetched file does not have the server's digest.
    """
    entries = {}
    for role, source in inputs.items():
        files = {path.name: digests[path] for path in source.paths}
        entries[role] = {**source.described, "files": files}
        if unverified := [path.name for path in source.paths if not _is_verified(path)]:
            entries[role]["unverified"] = unverified
    return entries


def _is_verified(path: Path) -> bool:
    declared = declared_digest(path)
    if declared is None:
        return True
    digest, complete_file = declared
    if complete_file is None:
        return False
    if content_sha256(complete_file) != digest:
        raise CorruptCheckpointError(
            f"{path}: what was fetched does not have the SHA-256 that the server gives",
            f"Remove {complete_file} and {complete_file.name}.ranges beside it, and run it again.",
        )
    return True
