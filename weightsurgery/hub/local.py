"""The local files of a push, compared with those in the repository."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from weightsurgery.checkpoint.digest_cache import Stamp, stamp
from weightsurgery.checkpoint.layout import read_layout
from weightsurgery.checkpoint.staging import RECORD_NAME
from weightsurgery.errors import HubError
from weightsurgery.hub.remote import CommitFile, git_blob
from weightsurgery.report.card_text import without_paths

if TYPE_CHECKING:
    from weightsurgery.checkpoint.record import EditRecord

__all__ = [
    "LocalFile",
    "check_unchanged",
    "copied_bytes",
    "others",
    "recorded_files",
    "stamps",
    "warnings_of",
]


@dataclass(frozen=True)
class LocalFile:
    """A file to be in the commit.

    Attributes:
        name: Its path in the repository.
        content: Its bytes, or the path of the file that holds them.
        size: In bytes.
        sha256: Hexadecimal.
    """

    name: str
    content: bytes | Path
    size: int
    sha256: str

    @classmethod
    def of(cls, name: str, content: bytes) -> LocalFile:
        """A file that is in memory alone."""
        import hashlib

        return cls(name, content, len(content), hashlib.sha256(content).hexdigest())

    @cached_property
    def blob(self) -> str:
        """Git's name for it; reads it."""
        content = self.content
        return git_blob(content if isinstance(content, bytes) else content.read_bytes())

    def same_as(self, other: CommitFile | None) -> bool:
        """Whether a file of a commit has this content."""
        if other is None or other.size != self.size:
            return False
        return other.sha256 == self.sha256 if other.sha256 else other.blob == self.blob


def recorded_files(out: Path, record: EditRecord) -> list[LocalFile]:
    """The record's files, and the record without paths of this machine."""
    files = [
        LocalFile(name, out / name, facts["bytes"], facts["sha256"])
        for name, facts in record.files.items()
    ]
    original = (out / RECORD_NAME).read_bytes()
    shown = without_paths(record)
    content = original if shown is record else shown.to_json().encode()
    return [*files, LocalFile.of(RECORD_NAME, content)]


def stamps(out: Path, record: EditRecord) -> dict[Path, Stamp]:
    """Each file's stamp, which changes when the file does."""
    paths = [out / name for name in (*record.files, RECORD_NAME)]
    return {path: stamp(path) for path in paths if path.is_file()}


def check_unchanged(before: Mapping[Path, Stamp]) -> None:
    """Refuse files that changed since they were verified.

    Raises:
        HubError: One did.
    """
    for path, earlier in before.items():
        if not path.is_file() or stamp(path) != earlier:
            raise HubError(
                f"{path}: changed while it was being pushed; nothing was committed",
                "Let nothing write there, and run it again.",
            )


def others(out: Path, files: Sequence[LocalFile]) -> list[str]:
    """Files of the directory that are not uploaded, apart from the card, which is read."""
    known = {file.name for file in files} | {"README.md"}
    names = (path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    return sorted(name for name in names if name not in known)


def copied_bytes(out: Path, record: EditRecord, files: Sequence[LocalFile]) -> int | None:
    """Bytes, in these files, of tensors that the edit left byte-identical to the base.

    Returns:
        Their number; None where the record does not show which those are.
    """
    storage = record.parameters.get("storage")
    if record.kind != "checkpoint" or not isinstance(storage, Mapping):
        return None
    if storage.get("dtype") is not None:  # then the others are stored anew as well
        return None
    names = {file.name for file in files}
    uploaded = (entry for entry in read_layout(out).entries.values() if entry.shard in names)
    return sum(entry.nbytes for entry in uploaded if entry.name not in record.tensors)


def warnings_of(place: Path, record: EditRecord, files: Sequence[LocalFile]) -> list[str]:
    """Warnings about these files, a line each."""
    warnings = []
    if left := others(place, files):
        more = f" and {len(left) - 1} more" if left[1:] else ""
        warnings.append(f"Not uploaded, since the record does not know it: {left[0]}{more}.")
    named = _adapter_base(place) if record.kind == "adapter" else None
    if named is not None and os.path.isabs(named):
        warnings.append(
            f"adapter_config.json names its base by a path of this machine ({named}): load it"
            " beside the base by hand, or export it from org/name to have that named."
        )
    return warnings


def _adapter_base(place: Path) -> str | None:
    try:
        config = json.loads((place / "adapter_config.json").read_text(encoding="utf-8"))
        named = config.get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError):
        return None
    return named if isinstance(named, str) else None
