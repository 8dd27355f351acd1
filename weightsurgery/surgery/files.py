"""The files of an unfinished output, into which tasks write from any machine that mounts them.

A task's bytes are on disk before it ends. Pages that it shares with its neighbours in the file are
written through at once (``O_DSYNC``): NFS would else write back whole ones that it has in memory,
over what another machine put there since.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from typing_extensions import override

from weightsurgery.checkpoint.hashing import Sha256
from weightsurgery.checkpoint.layout import ShardHeader
from weightsurgery.checkpoint.staging import output_errors
from weightsurgery.checkpoint.writer import write_all
from weightsurgery.errors import ClusterError
from weightsurgery.surgery.tasks import Part, Task

__all__ = ["Files", "invisible"]

# At least a page of any machine.
_PAGE = 1 << 16


def invisible(path: Path) -> ClusterError:
    """The error for a file that another machine does not see."""
    return ClusterError(
        f"{path}: not there on node {socket.gethostname()}, or not the same",
        "Keep inputs and output on storage that all nodes mount under the same path.",
    )


@dataclass(frozen=True)
class Files:
    """See :class:`weightsurgery.surgery.tasks.Sink`.

    Attributes:
        target: The output, for messages.
        paths: The files of the unfinished output, by shard.
        mark: A file beside them, and its text: storage without it is another's.
    """

    target: Path
    paths: Mapping[str, Path]
    mark: tuple[Path, str]

    def check(self) -> None:
        """Refuse a machine on which the mark is not there."""
        path, text = self.mark
        if _text(path) != text:
            raise invisible(path.parent)

    def part(self, task: Task, header: ShardHeader) -> FilePart:
        """Open the file."""
        return FilePart(task, header, self.paths[task.shard], self.target)


def _text(path: Path) -> str | None:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return None


class FilePart(Part):
    """A range of a file; see :class:`weightsurgery.surgery.tasks.Part`.

    Args:
        task: What is written.
        header: Of the output's shard.
        path: The file.
        target: The output, for messages.

    Raises:
        ClusterError: The file is not there.
    """

    def __init__(self, task: Task, header: ShardHeader, path: Path, target: Path) -> None:
        super().__init__(task, header)
        self.digest, self._target = Sha256(), target
        flags = os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            self._file = os.open(path, flags)
            self._edges = os.open(path, flags | os.O_DSYNC)
        except FileNotFoundError:
            raise invisible(path) from None

    def __enter__(self) -> FilePart:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                with output_errors(self._target):
                    os.fdatasync(self._file)
        finally:
            os.close(self._file)
            os.close(self._edges)

    @override
    def store(self, offset: int, data: memoryview) -> None:
        first = min(-offset % _PAGE, len(data))  # whole pages begin there
        last = max(first, len(data) - (offset + len(data)) % _PAGE)
        with output_errors(self._target):
            write_all(self._edges, data[:first], offset)
            write_all(self._file, data[first:last], offset + first)
            write_all(self._edges, data[last:], offset + last)
