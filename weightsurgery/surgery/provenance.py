"""What an output was made from: the base and every term of every vector, by role."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weightsurgery.checkpoint import identity
from weightsurgery.checkpoint.digest_cache import declared_digest
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.checkpoint.record import content_sha256, input_sha256
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
    """Something that is read.

    Attributes:
        described: What the record says of it, besides its files.
        paths: Its files.
    """

    described: Mapping[str, Any]
    paths: Sequence[Path]


def inputs_of(
    base: Checkpoint,
    vectors: Mapping[str, TaskVector],
    statistics: Mapping[str, InputStatistics] | None = None,
) -> dict[str, Input]:
    """The base, the terms of the vectors (several of one role are numbered), and statistics."""
    source = {
        "kind": "checkpoint",
        "name": base.source.name,
        "revision": base.source.revision,
        **({"notes": list(base.notes)} if base.notes else {}),
        **({"remarks": list(odd)} if (odd := remarks(base)) else {}),
    }
    found = {"base": Input(source, base.files_read())}
    for role, vector in vectors.items():
        for number, (factor, change) in enumerate(vector.terms, 1):
            key = role if len(vector.terms) == 1 else f"{role}.{number}"
            described = {**change.provenance(), "factor": factor}
            found[key] = Input(described, described.pop("paths"))
    for role, each in (statistics or {}).items():
        described = dict(each.provenance())
        found[role] = Input(described, described.pop("paths"))
    return found


def inputs_of_edit(edit: Edit, base: Checkpoint) -> dict[str, Input]:
    """All that an edit reads, by role."""
    return inputs_of(base, edit.vectors(), edit.statistics())


def lineage_of_edit(edit: Edit, base: Checkpoint, run: Run) -> list[dict[str, Any]]:
    """The record's entries of whether what an edit reads derives from the base.

    Raises:
        LineageError: Something does not, and may not be unrelated.
    """
    changes = [change for vector in edit.vectors().values() for _, change in vector.terms]
    found = check_lineage(base, [*changes, *edit.statistics().values()], run.allow_unrelated)
    return [kin.to_dict() for kin in found]


def folders(inputs: Mapping[str, Input]) -> list[Path]:
    """The directories that are read, which no output may touch."""
    return sorted({path.parent for each in inputs.values() for path in each.paths})


def files(inputs: Mapping[str, Input]) -> list[Path]:
    """All files of all inputs, each once."""
    return list(dict.fromkeys(path for each in inputs.values() for path in each.paths))


def identity_of(inputs: Mapping[str, Input], **described: Any) -> str:
    """See :func:`weightsurgery.checkpoint.identity.identity_of`."""
    read = {role: (each.described, each.paths) for role, each in inputs.items()}
    return identity.identity_of(read, **described)


def hash_files(inputs: Mapping[str, Input], workers: int) -> dict[Path, str]:
    """SHA-256 of each file."""
    paths = files(inputs)
    with ThreadPoolExecutor(workers, "ws") as pool:
        return dict(zip(paths, pool.map(input_sha256, paths), strict=True))


def recorded(inputs: Mapping[str, Input], digests: Mapping[Path, str]) -> dict[str, Any]:
    """The record's entry for each input.

    Of a file on the Hub that was read in parts, the digest is the server's word: once all of it was
    fetched it is compared, and else named under ``unverified``.

    Raises:
        CorruptCheckpointError: What was fetched is not what the server said.
    """
    found = {}
    for role, each in inputs.items():
        files = {path.name: digests[path] for path in each.paths}
        found[role] = {**each.described, "files": files}
        if unverified := [path.name for path in each.paths if not _is_verified(path)]:
            found[role]["unverified"] = unverified
    return found


def _is_verified(path: Path) -> bool:
    known = declared_digest(path)
    if known is None:
        return True
    digest, whole = known
    if whole is None:
        return False
    if content_sha256(whole) != digest:
        raise CorruptCheckpointError(
            f"{path}: what was fetched does not have the SHA-256 that the server gives",
            f"Remove {whole} and {whole.name}.ranges beside it, and run it again.",
        )
    return True
