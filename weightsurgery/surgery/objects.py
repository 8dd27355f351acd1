"""Objects of an unfinished output: tasks own whole parts of uploads, and come in order.

The SHA-256 of a shard goes through all of its bytes, and no part can be read before its upload has
ended. So a task begins where the one before it has ended, with the state of the hash there; shards
go side by side, and so do the parts of one task. Doing a task twice replaces its parts by the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from typing_extensions import override

from weightsurgery.checkpoint.hashing import Sha256
from weightsurgery.checkpoint.layout import ShardHeader
from weightsurgery.checkpoint.object_store import CONNECTIONS, PART, ObjectPlace, ObjectStore
from weightsurgery.errors import OutputError
from weightsurgery.surgery.tasks import Job, Part, Task
from weightsurgery.surgery.windows import WINDOW

__all__ = ["PART", "TASK", "ObjectTask", "Objects", "object_tasks"]

# Bytes of a task, and the least of a part that is not a shard's last: stores take 10,000 parts, of
# 5 MiB or more.
TASK = 64 * WINDOW
LEAST = 3 * WINDOW
_MOST_PARTS = 5000


@dataclass(frozen=True)
class ObjectTask(Task):
    """A range of bytes that is whole parts of a shard's upload.

    Attributes:
        first: Number of its first part.
        size: Bytes of a part; the last may have fewer.
        alone: Whether a tensor in it has to be worked out, or all go one by one.
        state: Of the shard's hash, before it.
    """

    first: int = 1
    size: int = PART
    alone: bool = False
    state: str = ""

    @property
    @override
    def decomposes(self) -> bool:
        return self.alone


def object_tasks(job: Job, header: ShardHeader) -> list[ObjectTask]:
    """The tasks of a shard, in order; no tensor that is worked out lies in two."""
    part = max(PART, -(-header.size // (_MOST_PARTS * WINDOW)) * WINDOW)
    least = -(-TASK // part) * part
    found: list[ObjectTask] = []
    start, first, alone = 0, 1, False
    for stop, worked_out in _cuts(job, header):
        alone |= worked_out
        rest = header.size - stop
        if rest and stop - start < least:
            continue
        size, length = part, stop - start
        if rest and length % part:  # of one size, so that none is too small
            size = -(-length // max(1, min(-(-length // part), length // LEAST)))
        found.append(ObjectTask(header.shard, start, stop, None, first, size, alone))
        start, first, alone = stop, first - (-length // size), False
    return found


def _cuts(job: Job, header: ShardHeader) -> Iterator[tuple[int, bool]]:
    """Where a task may end, and whether what lies before it has to be worked out."""
    at = 0
    for entry in header.entries:
        if not entry.nbytes or not job.alone(entry.name):
            continue
        yield from _between(at, entry.start)
        yield entry.stop, True
        at = entry.stop
    yield from _between(at, header.size)


def _between(start: int, stop: int) -> Iterator[tuple[int, bool]]:
    """The ends of windows in a stretch, and its own."""
    while start < stop:
        start = min(stop, (start // WINDOW + 1) * WINDOW)
        yield start, False


@dataclass(frozen=True)
class Objects:
    """See :class:`weightsurgery.surgery.tasks.Sink`.

    Attributes:
        target: The output.
        uploads: The uploads' ids, by shard.
    """

    target: ObjectPlace
    uploads: Mapping[str, str]

    def check(self) -> None:
        """Refuse a machine that does not see the store."""
        ObjectStore(self.target)

    def part(self, task: Task, header: ShardHeader) -> ObjectPart:
        """Begin a task's parts."""
        assert isinstance(task, ObjectTask)
        return ObjectPart(task, header, ObjectStore(self.target), self.uploads[task.shard])


class ObjectPart(Part):
    """Parts of an upload, a few of them under way at a time.

    Args:
        task: What is written.
        header: Of the output's shard.
        store: Where.
        upload: Its id.

    Raises:
        OutputError: This installation has no hash that goes on elsewhere.
    """

    def __init__(
        self, task: ObjectTask, header: ShardHeader, store: ObjectStore, upload: str
    ) -> None:
        super().__init__(task, header)
        try:
            self.digest = Sha256(task.state)
        except NotImplementedError as error:
            remedy = "Install a wheel, or a C compiler and this again; or write to a directory."
            raise OutputError(f"{store.place}: {error}", remedy) from None
        self._store, self._upload, self._size = store, upload, task.size
        self._number, self._buffer = task.first, bytearray()
        self._waiting: list[tuple[int, int, Future[str]]] = []
        self._parts: list[tuple[int, str, int]] = []
        self._pool = ThreadPoolExecutor(CONNECTIONS, "ws-part")

    def __enter__(self) -> ObjectPart:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    @override
    def store(self, offset: int, data: memoryview) -> None:
        while data:
            count = min(len(data), self._size - len(self._buffer))
            self._buffer += data[:count]
            data = data[count:]
            if len(self._buffer) == self._size:
                self._send()

    def _send(self) -> None:
        number, data = self._number, self._buffer
        self._number, self._buffer = number + 1, bytearray()
        sent = self._pool.submit(self._store.put_part, self.task.shard, self._upload, number, data)
        self._waiting.append((number, len(data), sent))
        self._take(CONNECTIONS)

    def _take(self, left: int) -> None:
        """Wait until at most so many parts are on their way."""
        while len(self._waiting) > left:
            number, size, sent = self._waiting.pop(0)
            self._parts.append((number, sent.result(), size))

    @override
    def done(self) -> dict[str, Any]:
        if self._buffer:
            self._send()
        self._take(0)
        return {"parts": self._parts, "state": self.digest.state(), **super().done()}
